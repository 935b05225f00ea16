#include "worker/session/event_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <variant>

#include "common/exit_codes.h"

namespace signvote {
namespace {

using testing::HasSubstr;
using testing::Not;

// A clock on which time passes whenever somebody looks.
class PassingClock : public FakeClock {
 public:
  Time Now() const override {
    looked_ = looked_ + std::chrono::milliseconds(30);
    return looked_;
  }

 private:
  mutable Time looked_;
};

class EventQueueTest : public testing::Test {
 protected:
  static LinkEvent Commit(uint64_t round) {
    CommitEvent commit;
    commit.round = Round(round);
    return commit;
  }
  absl::Status Timeout() { return queue_.Next(clock_.Now(), "a round to open").status(); }

  FakeClock clock_;
  EventQueue queue_{"head:9", Waits(&clock_, {})};
};

TEST_F(EventQueueTest, EventsComeInOrderAndAreTakenOnce) {
  ASSERT_TRUE(queue_.Push(FinishEvent{Round(3)}).ok());
  ASSERT_TRUE(queue_.Push(Commit(4)).ok());
  EXPECT_EQ(std::get<FinishEvent>(*queue_.Next(clock_.Now(), "x")).rounds, Round(3));
  EXPECT_EQ(std::get<CommitEvent>(*queue_.TryNext()).round, Round(4));
  EXPECT_FALSE(queue_.TryNext().has_value());
}

TEST_F(EventQueueTest, AWaitThatComesToNothingNamesWhatTheServerSaidLast) {
  absl::Status status = Timeout();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kWaitTimeout);
  EXPECT_THAT(std::string(status.message()), HasSubstr("for a round to open"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("there is no connection to head:9"));
  queue_.SetConnected(true);
  queue_.SetNotice("waiting for w2");
  status = Timeout();
  EXPECT_THAT(std::string(status.message()), HasSubstr("the server says: waiting for w2"));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("connection")));
  queue_.SetNotice("");
  EXPECT_THAT(std::string(Timeout().message()), Not(HasSubstr("says")));
}

TEST_F(EventQueueTest, WhatEndedTheLinkComesBehindAllEvents) {
  ASSERT_TRUE(queue_.Push(Commit(1)).ok());
  EXPECT_TRUE(queue_.status().ok());
  queue_.End(absl::UnavailableError("gone"));
  EXPECT_TRUE(queue_.Next(clock_.Now(), "x").ok());
  EXPECT_EQ(Timeout(), absl::UnavailableError("gone"));
  EXPECT_EQ(queue_.status(), absl::UnavailableError("gone"));
}

TEST_F(EventQueueTest, AfterAGoodbyeNothingFollows) {
  EXPECT_FALSE(queue_.AwaitEnd(clock_.Now(), EventQueue::Or::kNothing));
  queue_.End(absl::OkStatus());
  EXPECT_TRUE(queue_.AwaitEnd(clock_.Now(), EventQueue::Or::kNothing));
  EXPECT_EQ(Timeout().code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(queue_.status().ok());
}

TEST_F(EventQueueTest, AFullQueueRefusesEventsButNotTheFirstWishToDrain) {
  for (size_t i = 0; i < EventQueue::kEventsMax; ++i) ASSERT_TRUE(queue_.Push(Commit(i)).ok());
  EXPECT_EQ(queue_.Push(Commit(0)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(queue_.drain_requested());
  queue_.RequestDrain("first");
  queue_.RequestDrain("second");
  EXPECT_TRUE(queue_.drain_requested());
  for (size_t i = 0; i < EventQueue::kEventsMax; ++i) ASSERT_TRUE(queue_.TryNext().has_value());
  EXPECT_EQ(std::get<DrainEvent>(*queue_.TryNext()).reason, "first");
  EXPECT_FALSE(queue_.TryNext().has_value());
}

TEST_F(EventQueueTest, AWishToDrainEndsTheWaitForTheEndWhereThatIsAskedFor) {
  queue_.RequestDrain("stop");
  // It returns before its deadline, which lies an hour ahead on a clock that stands still.
  EXPECT_FALSE(queue_.AwaitEnd(clock_.Now() + std::chrono::hours(1), EventQueue::Or::kDrain));
  EXPECT_FALSE(queue_.AwaitEnd(clock_.Now(), EventQueue::Or::kNothing));
}

TEST_F(EventQueueTest, CommitsAtHandAreThoseThatFollowWithoutAGap) {
  for (const uint64_t round : {3, 4, 5, 7}) ASSERT_TRUE(queue_.Push(Commit(round)).ok());
  ASSERT_TRUE(queue_.Push(FinishEvent{}).ok());
  EXPECT_EQ(queue_.AtHandFrom(Round(3)), Round(6));
  EXPECT_EQ(queue_.AtHandFrom(Round(5)), Round(6));
  EXPECT_EQ(queue_.AtHandFrom(Round(6)), Round(6));
  EXPECT_EQ(queue_.AtHandFrom(Round(7)), Round(8));
}

TEST_F(EventQueueTest, AnInterruptionEndsAWaitAndTakesNothing) {
  PassingClock clock;
  bool wanted = false;
  EventQueue queue("head:9", Waits(&clock, [&] { return wanted; }));
  EXPECT_EQ(queue.Next(clock.Now() + std::chrono::seconds(1), "x").status().code(),
            absl::StatusCode::kDeadlineExceeded);
  wanted = true;
  EXPECT_EQ(queue.Next(clock.Now() + std::chrono::hours(1), "x").status().code(),
            absl::StatusCode::kCancelled);
  ASSERT_TRUE(queue.Push(Commit(1)).ok());
  EXPECT_TRUE(queue.Next(clock.Now(), "x").ok()) << "what is there is not waited for";
}

}  // namespace
}  // namespace signvote
