#include "worker/session/conversation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "common/exit_codes.h"
#include "tests/unit/worker/session/fake_stream.h"
#include "tests/unit/worker/session/run_messages.h"

namespace signvote::testing {
namespace {

using Goodbye = Conversation::Goodbye;

class ConversationTest : public ::testing::Test {
 protected:
  ConversationTest() {
    conversation_.Introduce(
        {.name = "w1", .token = "", .metrics_address = "", .model = SmallModel()});
  }
  std::shared_ptr<FakeStream> Connect() {
    auto stream = std::make_shared<FakeStream>();
    const auto opening = conversation_.Begins(stream);
    EXPECT_TRUE(opening.has_value());
    EXPECT_EQ(opening->join.join().name(), "w1");
    EXPECT_EQ(opening->connection, ++connections_);
    return stream;
  }
  void Hear(const v1::ServerMessage& message) {
    const auto actions = conversation_.Hear(message, clock_.Now());
    ASSERT_TRUE(actions.ok()) << actions.status();
  }
  // Connected, welcomed, and its replica stands at `round`.
  std::shared_ptr<FakeStream> Following(uint64_t round) {
    std::shared_ptr<FakeStream> stream = Connect();
    Hear(WelcomeMessage(v1::Welcome::STATE_FETCH));
    conversation_.SayReplicaStandsAt(connections_, Round(round));
    return stream;
  }
  static CommitEvent Commit(uint64_t round) {
    CommitEvent commit;
    commit.round = Round(round);
    commit.epoch = Epoch(1);
    return commit;
  }
  static v1::WorkerMessage Leave() {
    v1::WorkerMessage leave;
    leave.mutable_leave()->set_reason("enough");
    return leave;
  }

  FakeClock clock_;
  EventQueue events_{"head:9", Waits(&clock_, {})};
  Conversation conversation_{&events_};
  uint64_t connections_ = 0;
};

TEST_F(ConversationTest, WhatIsSaidGoesOverTheLiveConnectionOrNowhere) {
  conversation_.SayDigest(Round(1), 2);
  const auto stream = Following(3);
  conversation_.SayDigest(Round(3), 99);
  const std::vector<v1::WorkerMessage> said = stream->TakeSaid();
  ASSERT_EQ(said.size(), 2u);
  EXPECT_EQ(said[0].ready().round(), 3u);
  EXPECT_EQ(said[1].replica_digest().round(), 3u);
  EXPECT_EQ(said[1].replica_digest().digest(), 99u);
  ASSERT_TRUE(conversation_.Ends(absl::OkStatus(), false).has_value());
  EXPECT_EQ(conversation_.stream(), nullptr);
  conversation_.SayDigest(Round(3), 99);
  EXPECT_TRUE(stream->TakeSaid().empty());
}

TEST_F(ConversationTest, AStateThatCameOverAnEarlierConnectionIsNotSaid) {
  const auto first = Connect();
  Hear(WelcomeMessage(v1::Welcome::STATE_FETCH));
  (void)conversation_.Ends(absl::OkStatus(), false);
  const auto second = Connect();
  Hear(WelcomeMessage(v1::Welcome::STATE_FETCH));
  conversation_.SayReplicaStandsAt(1, Round(3));
  EXPECT_TRUE(second->TakeSaid().empty());
  conversation_.Abandon(1, absl::AbortedError("x"));
  EXPECT_FALSE(second->cancelled.has_value());
  conversation_.Abandon(2, absl::AbortedError("x"));
  EXPECT_EQ(second->cancelled, absl::AbortedError("x"));
}

TEST_F(ConversationTest, ACommitIsInTheQueueExactlyWhenTheFollowerHasTakenIt) {
  const auto stream = Following(0);
  ASSERT_TRUE(conversation_.Took(Commit(0)).ok());
  EXPECT_EQ(events_.AtHandFrom(Round(0)), Round(1));
  EXPECT_EQ(conversation_.Hear(CommitMessage(2), clock_.Now()).status().code(),
            absl::StatusCode::kAborted)
      << "1 is due";
  while (events_.Push(FinishEvent{}).ok()) {
  }
  EXPECT_EQ(conversation_.Took(Commit(1)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(conversation_.Hear(CommitMessage(2), clock_.Now()).status().code(),
            absl::StatusCode::kAborted)
      << "1 is due still";
}

TEST_F(ConversationTest, CommitsThatCameDuringATransferAreNotDueAgain) {
  const auto stream = Connect();
  Hear(WelcomeMessage(v1::Welcome::STATE_FETCH));
  for (const uint64_t round : {5, 6}) ASSERT_TRUE(conversation_.Took(Commit(round)).ok());
  conversation_.SayReplicaStandsAt(1, Round(5));
  EXPECT_EQ(stream->TakeSaid().at(0).ready().round(), 5u);
  EXPECT_TRUE(conversation_.Hear(CommitMessage(6), clock_.Now())->empty()) << "it is at hand";
  EXPECT_EQ(conversation_.Hear(CommitMessage(7), clock_.Now())->size(), 1u);
}

TEST_F(ConversationTest, HowAConnectionEndedIsTold) {
  const auto stream = Connect();
  std::optional<ConnectionEnd> end = conversation_.Ends(absl::UnavailableError("x"), true);
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(end->status, absl::UnavailableError("x"));
  EXPECT_TRUE(end->by_us);
  EXPECT_FALSE(end->welcomed);
  EXPECT_FALSE(end->ever_welcomed);
  Following(0);
  EXPECT_TRUE(conversation_.welcomed());
  end = conversation_.Ends(absl::OkStatus(), false);
  EXPECT_TRUE(end->welcomed);
  EXPECT_FALSE(conversation_.welcomed());
  Connect();
  end = conversation_.Ends(absl::OkStatus(), false);
  EXPECT_FALSE(end->welcomed);
  EXPECT_TRUE(end->ever_welcomed);
  EXPECT_FALSE(end->finish_seen);
}

TEST_F(ConversationTest, WhenBothHavePartedNothingFollows) {
  Following(2);
  v1::ServerMessage finish;
  finish.mutable_finish()->set_rounds(2);
  Hear(finish);
  EXPECT_TRUE(conversation_.finish_current());
  conversation_.SayDigest(Round(2), 1);
  EXPECT_FALSE(conversation_.Ends(absl::OkStatus(), false).has_value());
  EXPECT_TRUE(conversation_.finish_seen());
  EXPECT_FALSE(conversation_.finish_current());
}

TEST_F(ConversationTest, ABrokenConnectionIsNoParting) {
  Following(2);
  v1::ServerMessage finish;
  finish.mutable_finish()->set_rounds(2);
  Hear(finish);
  conversation_.SayDigest(Round(2), 1);
  const auto end = conversation_.Ends(absl::UnavailableError("x"), false);
  ASSERT_TRUE(end.has_value());
  EXPECT_TRUE(end->finish_seen);
}

TEST_F(ConversationTest, AGoodbyeIsTheLastWordAndNoConnectionFollows) {
  const auto stream = Following(0);
  (void)stream->TakeSaid();
  conversation_.SayGoodbye(Leave(), Goodbye::kHalfClose);
  EXPECT_EQ(stream->TakeSaid().at(0).leave().reason(), "enough");
  EXPECT_TRUE(stream->half_closed);
  EXPECT_FALSE(stream->cancelled.has_value());
  EXPECT_FALSE(conversation_.Ends(absl::OkStatus(), false).has_value());
  EXPECT_FALSE(conversation_.Begins(std::make_shared<FakeStream>()).has_value());
}

TEST_F(ConversationTest, WhoWaitsForTheServersGoodbyeDoesNotHangUp) {
  const auto stream = Following(0);
  conversation_.SayGoodbye(std::nullopt, Goodbye::kAwaitServer);
  EXPECT_FALSE(stream->half_closed);
}

TEST_F(ConversationTest, OnlyWhoAwaitsTheServersGoodbyeHearsHowTheRunEnded) {
  const auto ended = WithExitCode(absl::FailedPreconditionError("x"), ExitCode::kReplicaMismatch);
  Following(0);
  conversation_.SayGoodbye(std::nullopt, Goodbye::kAwaitServer);
  EXPECT_FALSE(conversation_.Ends(absl::UnavailableError("x"), false).has_value());
  const auto end = conversation_.Ends(ended, false);
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(ExitCodeFor(end->status), ExitCode::kReplicaMismatch);
  conversation_.SayGoodbye(Leave(), Goodbye::kHalfClose);
  EXPECT_FALSE(conversation_.Ends(ended, false).has_value());
}

TEST_F(ConversationTest, BeforeTheWelcomeThereIsNobodyToPartFrom) {
  const auto stream = Connect();
  conversation_.SayGoodbye(Leave(), Goodbye::kHalfClose);
  EXPECT_TRUE(stream->cancelled.has_value());
  EXPECT_TRUE(stream->TakeSaid().empty());
}

TEST_F(ConversationTest, ClosingCutsTheLiveConnectionAndLetsNoneFollow) {
  const auto stream = Following(0);
  conversation_.Close();
  EXPECT_TRUE(absl::IsCancelled(*stream->cancelled));
  EXPECT_FALSE(conversation_.Ends(absl::UnavailableError("x"), false).has_value());
  EXPECT_FALSE(conversation_.Begins(std::make_shared<FakeStream>()).has_value());
}

TEST(ConversationBeforeItsIntroductionTest, NothingIsKnown) {
  FakeClock clock;
  EventQueue events("head:9", Waits(&clock, {}));
  const Conversation conversation(&events);
  EXPECT_FALSE(conversation.welcomed());
  EXPECT_FALSE(conversation.vote_open());
  EXPECT_FALSE(conversation.finish_seen());
  EXPECT_FALSE(conversation.finish_current());
}

}  // namespace
}  // namespace signvote::testing
