#include "worker/session/follower.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/unit/worker/session/run_messages.h"

namespace signvote::testing {
namespace {

using ::testing::HasSubstr;

// One follower and what it is told, with the actions of the last message at hand.
class FollowerTest : public ::testing::Test {
 protected:
  FollowerTest() : follower_(Options()) {}

  static FollowerOptions Options() {
    return {.name = "w1",
            .token = "secret",
            .metrics_address = "10.0.0.1:9",
            .run_id = std::nullopt,
            .model = SmallModel()};
  }
  absl::Status Tell(const v1::ServerMessage& message) {
    absl::StatusOr<std::vector<FollowerAction>> actions = follower_.Handle(message, now_);
    actions_ = actions.ok() ? *std::move(actions) : std::vector<FollowerAction>();
    return actions.status();
  }
  template <typename Action>
  const Action* Find() const {
    const Action* found = nullptr;
    for (const FollowerAction& action : actions_) {
      if (const auto* one = std::get_if<Action>(&action)) {
        EXPECT_EQ(found, nullptr) << "said twice";
        found = one;
      }
    }
    return found;
  }
  // A connection that was welcomed.
  void LetIn(v1::Welcome::State state, uint64_t epoch = 1) {
    follower_.Connected();
    v1::ServerMessage message = WelcomeMessage(state);
    message.mutable_welcome()->set_epoch(epoch);
    ASSERT_TRUE(Tell(message).ok());
  }
  // … and whose replica stands at `round`.
  void FollowFrom(uint64_t round, uint64_t epoch = 1) {
    LetIn(v1::Welcome::STATE_FETCH, epoch);
    const v1::WorkerMessage ready = follower_.FollowFrom(Round(round), Round(round));
    ASSERT_EQ(ready.ready().round(), round);
  }
  absl::StatusOr<bool> Wants(uint64_t round) const {
    return follower_.Wants(kSmallRun, Round(round));
  }

  Time now_ = Time{} + std::chrono::seconds(100);
  Follower follower_;
  std::vector<FollowerAction> actions_;
};

TEST_F(FollowerTest, TheFirstJoinSaysWhoComesWithWhatModelAndNoReplica) {
  const v1::WorkerMessage message = follower_.Connected();
  const v1::Join& join = message.join();
  EXPECT_EQ(join.name(), "w1");
  EXPECT_EQ(join.token(), "secret");
  EXPECT_EQ(join.metrics_address(), "10.0.0.1:9");
  EXPECT_EQ(join.tensors_size(), 2);
  EXPECT_TRUE(join.run_id().empty());
  EXPECT_FALSE(join.has_round());
  EXPECT_FALSE(follower_.run_known());
  EXPECT_FALSE(follower_.ever_welcomed());
  EXPECT_EQ(follower_.name(), "w1");
}

TEST_F(FollowerTest, AWishedRunIsNamedInTheJoin) {
  FollowerOptions options = Options();
  options.run_id = RunId::FromRandom(8, 9);
  Follower follower(options);
  EXPECT_EQ(follower.Connected().join().run_id(), RunId::FromRandom(8, 9).bytes());
}

TEST_F(FollowerTest, AJoinAfterCommitsSaysWhereTheReplicaStandsInWhichRunAndEpoch) {
  FollowFrom(3);
  ASSERT_TRUE(Tell(CommitMessage(3, 7)).ok());
  follower_.Took(Round(3), Epoch(7));
  follower_.Disconnected();
  const v1::WorkerMessage join = follower_.Connected();
  EXPECT_TRUE(join.join().has_round());
  EXPECT_EQ(join.join().round(), 4u);
  EXPECT_EQ(join.join().epoch(), 7u);
  EXPECT_EQ(join.join().run_id(), kSmallRun.bytes());
}

TEST_F(FollowerTest, BeforeTheWelcomeOnlyPingsNoticesAndDrainsAreTaken) {
  follower_.Connected();
  v1::ServerMessage message;
  message.mutable_ping()->set_nonce(5);
  ASSERT_TRUE(Tell(message).ok());
  ASSERT_NE(Find<SayAction>(), nullptr);
  EXPECT_EQ(Find<SayAction>()->message.pong().nonce(), 5u);
  message.mutable_notice()->set_text("wait");
  ASSERT_TRUE(Tell(message).ok());
  ASSERT_NE(Find<NoticeAction>(), nullptr);
  EXPECT_EQ(Find<NoticeAction>()->text, "wait");
  // An operator may drain a worker that still waits for the uploader.
  message.mutable_drain()->set_reason("enough");
  ASSERT_TRUE(Tell(message).ok());
  ASSERT_NE(Find<DrainAction>(), nullptr);
  EXPECT_EQ(Find<DrainAction>()->reason, "enough");
  EXPECT_EQ(Tell(OpenMessage(0, 0)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Tell(CommitMessage(0)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Wants(0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(FollowerTest, AWelcomeIsTakenOnceAndSaysTheRun) {
  follower_.Connected();
  v1::ServerMessage welcome = WelcomeMessage(v1::Welcome::STATE_UPLOAD);
  welcome.mutable_welcome()->set_incarnation(12);
  ASSERT_TRUE(Tell(welcome).ok());
  ASSERT_EQ(actions_.size(), 2u);
  ASSERT_NE(Find<JoinedAction>(), nullptr);
  EXPECT_TRUE(Find<JoinedAction>()->first);
  ASSERT_NE(Find<TransferAction>(), nullptr);
  EXPECT_EQ(Find<TransferAction>()->kind, TransferAction::Kind::kUpload);
  EXPECT_EQ(Find<TransferAction>()->ticket, "ticket");
  EXPECT_TRUE(follower_.welcomed());
  EXPECT_TRUE(follower_.ever_welcomed());
  ASSERT_TRUE(follower_.run_known());
  EXPECT_EQ(follower_.run().run_id, kSmallRun);
  EXPECT_EQ(follower_.incarnation(), 12u);
  EXPECT_EQ(Tell(welcome).code(), absl::StatusCode::kInvalidArgument);
  // Not a second time on the next connection either.
  follower_.Disconnected();
  EXPECT_FALSE(follower_.welcomed());
  EXPECT_TRUE(follower_.ever_welcomed());
  LetIn(v1::Welcome::STATE_FETCH);
  EXPECT_FALSE(Find<JoinedAction>()->first);
  EXPECT_EQ(Find<TransferAction>()->kind, TransferAction::Kind::kFetch);
}

TEST_F(FollowerTest, AnotherRunLayoutSeedOrChunkSizeIsNotFollowed) {
  LetIn(v1::Welcome::STATE_FETCH);
  const auto refused = [&](auto change) {
    follower_.Connected();
    v1::ServerMessage message = WelcomeMessage(v1::Welcome::STATE_FETCH);
    change(message.mutable_welcome());
    EXPECT_EQ(Tell(message).code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_FALSE(follower_.welcomed());
  };
  refused([](v1::Welcome* w) { w->set_run_id(std::string(16, 'x')); });
  refused([](v1::Welcome* w) { w->set_seed(99); });
  refused([](v1::Welcome* w) { w->set_chunk_coordinates(1024); });
  refused([](v1::Welcome* w) {
    const Layout other =
        *Layout::Make({{.name = "b", .shape = {500}}, {.name = "a", .shape = {1000}}});
    FillRunLayout(other, w->mutable_layout());
  });
  LetIn(v1::Welcome::STATE_FETCH);
  EXPECT_TRUE(follower_.welcomed());
}

// A replica's buffers are made once, for the payloads of the first welcome.
TEST_F(FollowerTest, OtherPayloadsOrMoreBallotsThanBeforeAreNotFollowed) {
  const auto welcome = [](v1::PayloadKind up, v1::PayloadKind down, uint32_t ballots_max) {
    v1::ServerMessage message = WelcomeMessage(v1::Welcome::STATE_FETCH);
    v1::PayloadRange& all = *message.mutable_welcome()->add_payloads();
    all.set_chunks(kSmallPlan.chunks());
    all.set_up(up);
    all.set_down(down);
    message.mutable_welcome()->set_ballots_max(ballots_max);
    return message;
  };
  follower_.Connected();
  ASSERT_TRUE(Tell(welcome(v1::PAYLOAD_SIGNS, v1::PAYLOAD_COUNTS, 5)).ok());
  const auto refused = [&](const v1::ServerMessage& message) {
    follower_.Connected();
    const absl::Status status = Tell(message);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("payloads of another kind or of more"));
    EXPECT_FALSE(follower_.welcomed());
  };
  refused(WelcomeMessage(v1::Welcome::STATE_FETCH));
  refused(welcome(v1::PAYLOAD_FP32, v1::PAYLOAD_FP32, 5));
  refused(welcome(v1::PAYLOAD_SIGNS, v1::PAYLOAD_COUNTS, 6));
  follower_.Connected();
  EXPECT_TRUE(Tell(welcome(v1::PAYLOAD_SIGNS, v1::PAYLOAD_COUNTS, 4)).ok());
}

TEST_F(FollowerTest, AReplicaIsOnlyKeptByWhoHasOne) {
  follower_.Connected();
  EXPECT_EQ(Tell(WelcomeMessage(v1::Welcome::STATE_KEEP)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Tell(WelcomeMessage(v1::Welcome::STATE_UNSPECIFIED)).code(),
            absl::StatusCode::kInvalidArgument);
  FollowFrom(6);
  follower_.Disconnected();
  follower_.Connected();
  ASSERT_TRUE(Tell(WelcomeMessage(v1::Welcome::STATE_KEEP)).ok());
  ASSERT_NE(Find<SayAction>(), nullptr);
  EXPECT_EQ(Find<SayAction>()->message.ready().round(), 6u);
  EXPECT_EQ(Find<TransferAction>(), nullptr);
  EXPECT_EQ(follower_.next(), Round(6));
}

TEST_F(FollowerTest, CommitsAreDueInOrderWithoutGaps) {
  FollowFrom(3);
  EXPECT_EQ(follower_.following(), Follower::Following::kFollowing);
  ASSERT_TRUE(Tell(CommitMessage(2)).ok());
  EXPECT_TRUE(actions_.empty()) << "the replica holds it";
  EXPECT_EQ(Tell(CommitMessage(4)).code(), absl::StatusCode::kAborted);
  ASSERT_TRUE(Tell(CommitMessage(3)).ok());
  EXPECT_NE(Find<CommitDueAction>(), nullptr);
  EXPECT_EQ(follower_.next(), Round(3)) << "until it was taken";
  follower_.Took(Round(3), Epoch(1));
  EXPECT_EQ(follower_.next(), Round(4));
  v1::ServerMessage foreign = CommitMessage(4);
  foreign.mutable_commit()->set_run_id("another");
  EXPECT_EQ(Tell(foreign).code(), absl::StatusCode::kInvalidArgument);
  v1::ServerMessage unknown = CommitMessage(4);
  unknown.mutable_commit()->set_kind(v1::Commit::KIND_UNSPECIFIED);
  EXPECT_EQ(Tell(unknown).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(FollowerTest, VerdictsOfTheDueRoundAndItsSuccessorAreKept) {
  FollowFrom(3);
  EXPECT_FALSE(*Wants(2));
  EXPECT_TRUE(*Wants(3));
  EXPECT_TRUE(*Wants(4));
  EXPECT_FALSE(*Wants(5));
  EXPECT_EQ(follower_.Wants(RunId::FromRandom(8, 9), Round(3)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(FollowerTest, WhileFetchingCommitsAreTakenFromWhereverTheyBegin) {
  LetIn(v1::Welcome::STATE_FETCH);
  EXPECT_EQ(follower_.following(), Follower::Following::kFetching);
  EXPECT_EQ(follower_.next(), std::nullopt);
  EXPECT_TRUE(*Wants(40));
  ASSERT_TRUE(Tell(CommitMessage(40)).ok());
  ASSERT_NE(Find<CommitDueAction>(), nullptr);
  follower_.Took(Round(40), Epoch(1));
  EXPECT_FALSE(*Wants(40));
  EXPECT_TRUE(*Wants(41));
  ASSERT_TRUE(Tell(CommitMessage(40)).ok());
  EXPECT_TRUE(actions_.empty()) << "it was taken";
  // One whose verdict found no room, and a gap after it.
  ASSERT_TRUE(Tell(CommitMessage(41)).ok());
  EXPECT_NE(Find<CommitDueAction>(), nullptr);
  EXPECT_TRUE(follower_.Mismatched(Round(41), "no verdict chunk came").ok());
  EXPECT_TRUE(*Wants(50));
  ASSERT_TRUE(Tell(CommitMessage(50)).ok());
  EXPECT_NE(Find<CommitDueAction>(), nullptr);
  follower_.Took(Round(50), Epoch(1));
  ASSERT_TRUE(Tell(CommitMessage(55)).ok());
  EXPECT_NE(Find<CommitDueAction>(), nullptr) << "a gap is no fault yet";
  // The caller has those of [48, 51) at hand.
  EXPECT_EQ(follower_.FollowFrom(Round(48), Round(51)).ready().round(), 48u);
  EXPECT_EQ(follower_.next(), Round(51));
  ASSERT_TRUE(Tell(CommitMessage(50)).ok());
  EXPECT_TRUE(actions_.empty());
  EXPECT_EQ(Tell(CommitMessage(52)).code(), absl::StatusCode::kAborted);
}

// A commit that was passed over while fetching is not sent again: waiting for it would be for ever.
TEST_F(FollowerTest, ARoundThatOpensAboveTheDueCommitAsksForANewConnection) {
  FollowFrom(51);
  const absl::Status ahead = Tell(OpenMessage(54, 0));
  EXPECT_EQ(ahead.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(ahead.message()),
              HasSubstr("round 54 opens, and the commits from 51 on have not come"));
  EXPECT_FALSE(follower_.open());
  EXPECT_TRUE(Tell(OpenMessage(51, 0)).ok());
  EXPECT_TRUE(follower_.open());
}

TEST_F(FollowerTest, AFetchThatItsConnectionDidNotSurviveIsForgotten) {
  LetIn(v1::Welcome::STATE_FETCH);
  follower_.Took(Round(40), Epoch(1));
  follower_.Disconnected();
  EXPECT_EQ(follower_.following(), Follower::Following::kNothing);
  EXPECT_FALSE(follower_.Connected().join().has_round());
  // A keeper's next connection passes over commits until it is told what becomes of its replica.
  FollowFrom(3);
  follower_.Disconnected();
  EXPECT_EQ(follower_.following(), Follower::Following::kFollowing);
}

TEST_F(FollowerTest, AMismatchIsMendedByANewConnectionASecondByTheWholeState) {
  FollowFrom(3);
  const absl::Status first = follower_.Mismatched(Round(3), "the hash differs");
  EXPECT_EQ(first.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(first.message()),
              HasSubstr("verdict of round 3 does not match its commit: the hash differs"));
  EXPECT_EQ(follower_.next(), Round(3)) << "asked for again";
  follower_.Took(Round(3), Epoch(1));
  EXPECT_FALSE(follower_.Mismatched(Round(4), "again").ok());
  EXPECT_EQ(follower_.following(), Follower::Following::kFollowing) << "not two in a row";
  EXPECT_FALSE(follower_.Mismatched(Round(4), "again").ok());
  EXPECT_EQ(follower_.following(), Follower::Following::kNothing);
  EXPECT_FALSE(*Wants(4));
  ASSERT_TRUE(Tell(CommitMessage(4)).ok());
  EXPECT_TRUE(actions_.empty());
  EXPECT_FALSE(follower_.Connected().join().has_round());
}

TEST_F(FollowerTest, AResyncFetchesOverTheSameSessionAndEndsTheVote) {
  FollowFrom(3);
  ASSERT_TRUE(Tell(OpenMessage(3, 1)).ok());
  ASSERT_TRUE(follower_.open());
  v1::ServerMessage resync;
  resync.mutable_resync()->set_round(3);
  ASSERT_TRUE(Tell(resync).ok());
  EXPECT_NE(Find<ClosedAction>(), nullptr);
  ASSERT_NE(Find<TransferAction>(), nullptr);
  EXPECT_EQ(Find<TransferAction>()->kind, TransferAction::Kind::kFetch);
  EXPECT_EQ(Find<TransferAction>()->ticket, "ticket");
  EXPECT_FALSE(follower_.open());
  EXPECT_EQ(follower_.following(), Follower::Following::kFetching);
  EXPECT_EQ(follower_.next(), std::nullopt);
}

TEST_F(FollowerTest, ABallotGoesUnderTheAttemptThatWasOpenedLastOnThisConnection) {
  FollowFrom(3, 5);
  EXPECT_EQ(follower_.VoteOf(Round(3)), std::nullopt);
  ASSERT_TRUE(Tell(OpenMessage(3, 1)).ok());
  ASSERT_NE(Find<OpenedAction>(), nullptr);
  EXPECT_EQ(Find<OpenedAction>()->ticket.round, Round(3));
  const VoteId vote{kSmallRun, Epoch(5), Attempt(1)};
  EXPECT_EQ(Find<OpenedAction>()->vote, vote);
  EXPECT_EQ(follower_.VoteOf(Round(3)), vote);
  EXPECT_EQ(follower_.VoteOf(Round(2)), std::nullopt);
  EXPECT_TRUE(follower_.open());
  follower_.Disconnected();
  EXPECT_FALSE(follower_.open());
  EXPECT_EQ(follower_.VoteOf(Round(3)), std::nullopt);
  v1::ServerMessage bad = OpenMessage(3, 1);
  bad.mutable_round_open()->set_eta_first(-1);
  LetIn(v1::Welcome::STATE_KEEP, 6);
  EXPECT_EQ(Tell(bad).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(follower_.open());
}

// Memory for local steps and for x0 is taken when the run is known.
TEST_F(FollowerTest, LocalStepsBeyondTheWelcomesAreNotOpened) {
  const auto welcome = [](uint32_t local_steps_max) {
    v1::ServerMessage message = WelcomeMessage(v1::Welcome::STATE_FETCH);
    message.mutable_welcome()->set_local_steps_max(local_steps_max);
    return message;
  };
  follower_.Connected();
  ASSERT_TRUE(Tell(welcome(4)).ok());
  EXPECT_EQ(follower_.run().local_steps_max, 4u);
  follower_.FollowFrom(Round(3), Round(3));
  v1::ServerMessage open = OpenMessage(3, 1);
  open.mutable_round_open()->set_local_steps(5);
  EXPECT_EQ(Tell(open).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(follower_.open());
  open.mutable_round_open()->set_local_steps(4);
  ASSERT_TRUE(Tell(open).ok());
  EXPECT_EQ(Find<OpenedAction>()->ticket.local_steps, 4u);
  open.mutable_round_open()->set_start(v1::RoundOpen::START_X0);
  const absl::Status without_x0 = Tell(open);
  EXPECT_EQ(without_x0.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(without_x0.message()), HasSubstr("x0"));

  follower_.Connected();
  const absl::Status grown = Tell(welcome(5));
  EXPECT_EQ(grown.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(grown.message()), HasSubstr("more local steps"));
  follower_.Connected();
  EXPECT_TRUE(Tell(welcome(0)).ok()) << "fewer";
}

TEST_F(FollowerTest, BothHavePartedOnceTheLastDigestWasSaidOnTheConnectionThatFinished) {
  FollowFrom(3);
  follower_.Took(Round(3), Epoch(1));
  v1::ServerMessage finish;
  finish.mutable_finish()->set_rounds(4);
  follower_.SaidDigest(Round(4));
  EXPECT_FALSE(follower_.parted()) << "the run goes on";
  EXPECT_FALSE(follower_.finish_seen());
  ASSERT_TRUE(Tell(finish).ok());
  ASSERT_NE(Find<FinishAction>(), nullptr);
  EXPECT_EQ(Find<FinishAction>()->rounds, Round(4));
  EXPECT_TRUE(follower_.finish_seen());
  EXPECT_TRUE(follower_.finish_current());
  EXPECT_TRUE(follower_.parted());
  follower_.Disconnected();
  EXPECT_TRUE(follower_.finish_seen());
  EXPECT_FALSE(follower_.finish_current());
  EXPECT_FALSE(follower_.parted());
  LetIn(v1::Welcome::STATE_KEEP);
  ASSERT_TRUE(Tell(finish).ok());
  EXPECT_FALSE(follower_.parted()) << "that digest went over another connection";
  follower_.SaidDigest(Round(3));
  EXPECT_FALSE(follower_.parted()) << "of an earlier round";
  follower_.SaidDigest(Round(4));
  EXPECT_TRUE(follower_.parted());
}

TEST_F(FollowerTest, AFinishToAWorkerThatIsBehindAsksForTheCommitsOverANewConnection) {
  FollowFrom(3);
  v1::ServerMessage finish;
  finish.mutable_finish()->set_rounds(4);
  ASSERT_TRUE(Tell(finish).ok());
  ASSERT_NE(Find<FinishAction>(), nullptr) << "the caller waits for no further round";
  ASSERT_NE(Find<RejoinAction>(), nullptr);
  EXPECT_EQ(Find<RejoinAction>()->why.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(Find<RejoinAction>()->why.message()), HasSubstr("commits from 3 on"));
  EXPECT_TRUE(follower_.finish_seen()) << "a server that is gone is not looked for long";
  EXPECT_FALSE(follower_.finish_current());
  EXPECT_EQ(follower_.Connected().join().round(), 3u);
  follower_.Disconnected();
  LetIn(v1::Welcome::STATE_KEEP);
  ASSERT_TRUE(Tell(CommitMessage(3)).ok());
  follower_.Took(Round(3), Epoch(1));
  ASSERT_TRUE(Tell(finish).ok());
  EXPECT_EQ(Find<RejoinAction>(), nullptr);
  EXPECT_TRUE(follower_.finish_current());
}

TEST_F(FollowerTest, AFinishWhileTheStateIsFetchedIsTakenAsItIs) {
  LetIn(v1::Welcome::STATE_FETCH);
  v1::ServerMessage finish;
  finish.mutable_finish()->set_rounds(4);
  ASSERT_TRUE(Tell(finish).ok());
  EXPECT_EQ(Find<RejoinAction>(), nullptr);
  EXPECT_TRUE(follower_.finish_current());
}

TEST_F(FollowerTest, DrainsArePassedOnAndLaterVersionsMessagesPassedOver) {
  LetIn(v1::Welcome::STATE_FETCH);
  v1::ServerMessage drain;
  drain.mutable_drain()->set_reason("operator");
  ASSERT_TRUE(Tell(drain).ok());
  ASSERT_NE(Find<DrainAction>(), nullptr);
  EXPECT_EQ(Find<DrainAction>()->reason, "operator");
  ASSERT_TRUE(Tell(v1::ServerMessage()).ok());
  EXPECT_TRUE(actions_.empty());
  v1::ServerMessage chunk;
  chunk.mutable_verdict_chunk();
  EXPECT_EQ(Tell(chunk).code(), absl::StatusCode::kInvalidArgument) << "these come as bytes";
  EXPECT_FALSE(follower_.goodbye());
  follower_.SayGoodbye();
  EXPECT_TRUE(follower_.goodbye());
}

}  // namespace
}  // namespace signvote::testing
