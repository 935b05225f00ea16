#include "server/run/run_thread.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/unit/server/run/run_fixture.h"

namespace signvote::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kLong = seconds(60);  // longer than a busy machine takes

TEST(InboxTest, APushWakesWhoeverWaits) {
  Inbox<int> inbox;
  std::vector<int> taken;
  std::jthread producer([&] { EXPECT_TRUE(inbox.Push(7)); });
  const Time begin = Clock::System()->Now();
  while (taken.empty()) EXPECT_TRUE(inbox.TakeAll(kLong, &taken));
  EXPECT_EQ(taken, std::vector<int>{7});
  EXPECT_LT(Clock::System()->Now() - begin, kLong / 2) << "it waited for its time to pass";
}

TEST(InboxTest, ManyProducersAreTakenAtOnceAndInTheirOrder) {
  Inbox<std::pair<int, int>> inbox;
  {
    std::vector<std::jthread> producers;
    for (int p = 0; p < 4; ++p) {
      producers.emplace_back([&inbox, p] {
        for (int i = 0; i < 1000; ++i) EXPECT_TRUE(inbox.Push({p, i}));
      });
    }
  }
  std::vector<std::pair<int, int>> taken;
  EXPECT_TRUE(inbox.TakeAll(Duration::zero(), &taken));
  ASSERT_EQ(taken.size(), 4000u);
  std::map<int, int> next;
  for (const auto& [producer, i] : taken) EXPECT_EQ(i, next[producer]++);
}

TEST(InboxTest, AClosedInboxGivesWhatItHasAndTakesNothing) {
  Inbox<int> inbox;
  EXPECT_TRUE(inbox.Push(1));
  inbox.Close();
  EXPECT_FALSE(inbox.Push(2));
  std::vector<int> taken;
  EXPECT_FALSE(inbox.TakeAll(kLong, &taken));
  EXPECT_EQ(taken, std::vector<int>{1});
  EXPECT_FALSE(inbox.TakeAll(kLong, &taken)) << "and nobody waits any more";
}

class RunThreadTest : public ::testing::Test {
 protected:
  void Start(RunOptions options = RunTest::Options(), Duration applier_delay = {}) {
    auto thread = RunThread::Create({.run = std::move(options),
                                     .state = {.run_id = RunId::FromRandom(1, 2)},
                                     .tally_threads = 2,
                                     .test_applier_delay = applier_delay},
                                    {.memory = [] { return std::nullopt; }}, Clock::System());
    ASSERT_TRUE(thread.ok()) << Describe(thread.status());
    thread_ = std::move(*thread);
    thread_->Start();
  }
  std::unique_ptr<RunThread> thread_;
};

TEST_F(RunThreadTest, HealthAndSnapshotsAreAnswered) {
  Start();
  const auto health = thread_->HealthNow(kLong);
  ASSERT_TRUE(health.ok());
  EXPECT_EQ(health->not_ready_because, "waiting for the first worker");
  const auto page = thread_->Snapshot(kLong);
  ASSERT_TRUE(page.ok());
  EXPECT_GT(page->resident_bytes, 0u);
  EXPECT_EQ(thread_->CopyReplica(kLong).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(RunThreadTest, AThreadThatIsHeldUpIsToldOfAndDoesNotHoldUpWhoAsks) {
  Start();
  std::atomic<bool> held = true;
  ASSERT_TRUE(thread_->Call([&](Run&, Time) {
    while (held.load()) std::this_thread::yield();
  }));
  EXPECT_EQ(thread_->HealthNow(milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  held = false;
  EXPECT_TRUE(thread_->HealthNow(kLong).ok());
}

TEST_F(RunThreadTest, AStopEndsItAndCallsThatAreStillPostedRun) {
  Start();
  thread_->RequestStop();
  ASSERT_TRUE(thread_->WaitUntilEnded(kLong));
  EXPECT_TRUE(thread_->end_status().ok());
  bool ran = false;
  ASSERT_TRUE(thread_->Call([&](Run&, Time) { ran = true; }));
  thread_->Stop();
  EXPECT_TRUE(ran);
  EXPECT_FALSE(thread_->Call([](Run&, Time) {}));
  EXPECT_FALSE(thread_->Post(TickIn{}));
  EXPECT_EQ(thread_->HealthNow(kLong).status().code(), absl::StatusCode::kUnavailable);
}

#if defined(SIGNVOTE_CHECK_WAITS)
TEST(RunThreadDeathTest, WhateverWaitsOnTheRunsThreadIsFound) {
  EXPECT_DEATH(
      {
        auto thread = RunThread::Create(
            {.run = RunTest::Options(), .state = {.run_id = RunId::FromRandom(1, 2)}},
            {.memory = [] { return std::nullopt; }}, Clock::System());
        (*thread)->Start();
        (void)(*thread)->Call([](Run&, Time) { Clock::System()->SleepFor(milliseconds(1)); });
        (void)(*thread)->HealthNow(kLong);
      },
      "a sleep on a thread that may wait for nothing");
}
#endif

}  // namespace
}  // namespace signvote::run
