// How the round engine opens, closes and commits rounds, one sentence each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "server/round/engine.h"
#include "tests/unit/server/round/engine_fixture.h"

namespace signvote::round {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// ---- opening

TEST_F(EngineTest, RoundZeroOpensOnceEnoughWorkersAreReady) {
  config_.workers_min = 2;
  EXPECT_FALSE(Has<OpenRound>(Ready(0)));
  EXPECT_EQ(View().phase, Phase::kWaitingForWorkers);
  const OpenRound open = One<OpenRound>(Ready(1));
  EXPECT_EQ(open.round, Round(0));
  EXPECT_EQ(open.attempt, Attempt(0));
  EXPECT_EQ(open.data_step, DataStep(0));
  EXPECT_FALSE(open.probe);
  EXPECT_EQ(open.quorum, 1u);
  ASSERT_EQ(open.seats.size(), 2u);
  EXPECT_EQ(open.seats[0].share, Share(0));
  EXPECT_EQ(open.seats[1].share, Share(1));
  EXPECT_EQ(*open.deadline, Duration(seconds(60)));
}

TEST_F(EngineTest, OneWorkerIsALegalNumberOfWorkers) {
  Start(1);
  const Actions actions = Vote(0);
  EXPECT_EQ(All<CloseChunk>(actions).size(), 2u);
  EXPECT_EQ(One<CommitRound>(actions).counted, (std::vector<uint32_t>{1, 1}));
  EXPECT_EQ(One<OpenRound>(actions).round, Round(1));
}

TEST_F(EngineTest, TheDefaultQuorumIsHalfTheMembersRoundedUp) {
  Start(5);
  EXPECT_EQ(last_open_.quorum, 3u);
}

TEST_F(EngineTest, AConfiguredQuorumIsCappedByTheMembers) {
  config_.quorum = 4;
  Start(2);
  EXPECT_EQ(last_open_.quorum, 2u);
}

TEST_F(EngineTest, TheRuleSaysInWhichRoundsWorkersProbe) {
  Start(1);
  EXPECT_FALSE(last_open_.probe);
  Vote(0);
  EXPECT_TRUE(last_open_.probe);
  Vote(0);
  EXPECT_FALSE(last_open_.probe);
}

TEST_F(EngineTest, ANewcomerIsAdmittedOnlyWhenTheNextRoundOpens) {
  Start(2);
  EXPECT_THAT(All<OpenRound>(Ready(2)), IsEmpty());
  Chunk(2, 0);
  EXPECT_EQ(View().stale_messages, 1u);
  const Actions actions = VoteAll({0, 1});
  EXPECT_THAT(Ids(One<CommitRound>(actions).voters), ElementsAre(0, 1));
  EXPECT_THAT(Seats(), ElementsAre(0, 1, 2));
  EXPECT_THAT(Notices(actions), HasSubstr("w2 joins with share 2 from round 1 on"));
}

TEST_F(EngineTest, TheDataStepGrowsByOnePerCommit) {
  Start(1);
  for (uint64_t t = 0; t < 5; ++t) {
    EXPECT_EQ(last_open_.data_step, DataStep(t));
    EXPECT_EQ(One<CommitRound>(Vote(0)).data_step, DataStep(t));
  }
}

// ---- closing and committing

TEST_F(EngineTest, AChunkClosesAsSoonAsEveryMemberVotedOnIt) {
  Start(3);
  Chunk(0, 1);
  Chunk(2, 1);
  EXPECT_FALSE(Has<CloseChunk>(Chunk(1, 0)));
  const CloseChunk close = One<CloseChunk>(Chunk(1, 1));
  EXPECT_EQ(close.chunk, ChunkIndex(1));
  EXPECT_THAT(Ids(close.voters), ElementsAre(0, 1, 2));
}

TEST_F(EngineTest, ACommitWaitsForTheScalarsOfCountedWorkers) {
  Start(2);
  Scalars(0);
  for (const uint32_t w : {0u, 1u}) {
    for (const uint32_t k : {0u, 1u}) EXPECT_FALSE(Has<CommitRound>(Chunk(w, k)));
  }
  const CommitRound commit = One<CommitRound>(Scalars(1));
  EXPECT_EQ(commit.scalars.size(), 2u);
  EXPECT_EQ(commit.stepsize.gamma, 0.5f);
  EXPECT_EQ(*commit.loss, 2.0);
  EXPECT_EQ(*commit.g_l1, 3.0);
  EXPECT_DOUBLE_EQ(*commit.density, 9.0 / (1000 * 1.5));
  EXPECT_THAT(rule_.workers, ElementsAre(2));
}

TEST_F(EngineTest, MissingScalarsCostTheRuleNotTheVote) {
  Start(2);
  Vote(0);
  Chunk(1, 0);
  Chunk(1, 1);
  const Actions actions = DoAfter(ToDeadline(), Tick{});
  const CommitRound commit = One<CommitRound>(actions);
  EXPECT_THAT(Ids(commit.voters), ElementsAre(0, 1));
  EXPECT_THAT(rule_.workers, ElementsAre(1));
}

TEST_F(EngineTest, ScalarsThatAreNotFiniteAreRefusedAndTheVoteStands) {
  Start(2);
  Vote(0);
  Chunk(1, 0);
  Chunk(1, 1);
  WorkerScalars bad = SomeScalars();
  bad.probe_l1 = std::numeric_limits<double>::quiet_NaN();
  const CommitRound commit = One<CommitRound>(Scalars(1, bad));
  EXPECT_EQ(commit.counted, (std::vector<uint32_t>{2, 2}));
  EXPECT_EQ(commit.scalars.size(), 1u);
  EXPECT_EQ(View().scalars_refused, 1u);
  EXPECT_THAT(rule_.workers, ElementsAre(1));
}

TEST_F(EngineTest, EveryScalarIsCheckedAndANormIsNeverNegative) {
  const double inf = std::numeric_limits<double>::infinity();
  std::vector<WorkerScalars> bad(6, SomeScalars());
  bad[0].loss = inf;
  bad[1].g_l1 = -1;
  bad[2].g_l2_squared = inf;
  bad[3].probe_l1 = -1;
  bad[4].prev_inner = -inf;
  bad[5].g_l1 = std::nan("");
  Start(1);
  for (size_t i = 0; i < bad.size(); ++i) {
    Scalars(0, bad[i]);
    EXPECT_EQ(View().scalars_refused, i + 1);
    Chunk(0, 0);
    Chunk(0, 1);
  }
  EXPECT_THAT(rule_.workers, ElementsAre(0, 0, 0, 0, 0, 0));
}

TEST_F(EngineTest, ARepeatedChunkIsCountedOnceAndIgnored) {
  Start(2);
  Chunk(0, 0);
  EXPECT_FALSE(Has<CloseChunk>(Chunk(0, 0)));
  EXPECT_EQ(View().duplicate_chunks, 1u);
  EXPECT_EQ(Member(0).duplicate_chunks, 1u);
  EXPECT_THAT(Ids(One<CloseChunk>(Chunk(1, 0)).voters), ElementsAre(0, 1));
}

TEST_F(EngineTest, MessagesOfOtherRoundsAttemptsAndUnknownChunksChangeNothing) {
  Start(2);
  EXPECT_THAT(Do(BallotChunkIn{Id(0), Inc(0), Round(1), Attempt(0), ChunkIndex(0)}), IsEmpty());
  EXPECT_THAT(Do(BallotChunkIn{Id(0), Inc(0), Round(0), Attempt(1), ChunkIndex(0)}), IsEmpty());
  EXPECT_THAT(Do(BallotChunkIn{Id(0), Inc(0), Round(0), Attempt(0), ChunkIndex(2)}), IsEmpty());
  EXPECT_THAT(Do(BallotChunkIn{Id(9), Incarnation(1), Round(0), Attempt(0), ChunkIndex(0)}),
              IsEmpty());
  EXPECT_THAT(Do(ScalarsIn{Id(0), Inc(0), Round(3), Attempt(0), SomeScalars()}), IsEmpty());
  EXPECT_EQ(View().stale_messages, 5u);
  EXPECT_EQ(One<CommitRound>(VoteAll({0, 1})).counted, (std::vector<uint32_t>{2, 2}));
}

TEST_F(EngineTest, AChunkOfACommittedRoundIsLate) {
  Start(1);
  Vote(0);
  Do(BallotChunkIn{Id(0), Inc(0), Round(0), Attempt(0), ChunkIndex(0)});
  EXPECT_EQ(View().late_chunks, 1u);
  EXPECT_EQ(Member(0).late_chunks, 1u);
}

TEST_F(EngineTest, CommitsAreGapFreeAndSayHowLongTheyTook) {
  Start(2);
  now_ = now_ + Duration(seconds(2));
  Vote(0);
  now_ = now_ + Duration(seconds(1));
  const CommitRound commit = One<CommitRound>(Vote(1));
  EXPECT_EQ(commit.opened_for, Duration(seconds(3)));
  EXPECT_EQ(commit.wait, Duration(seconds(1)));
  for (uint64_t t = 1; t < 5; ++t) EXPECT_EQ(One<CommitRound>(VoteAll({0, 1})).round, Round(t));
  EXPECT_THAT(rule_.rounds, ElementsAre(0, 1, 2, 3, 4));
}

// ---- deadlines

TEST_F(EngineTest, AtTheDeadlineAChunkClosesWithTheQuorumAndTheRestAbstained) {
  Start(3);
  VoteAll({0, 1});
  Chunk(2, 0);
  const Actions actions = DoAfter(ToDeadline(), Tick{});
  const CommitRound commit = One<CommitRound>(actions);
  EXPECT_EQ(commit.counted, (std::vector<uint32_t>{3, 2}));
  EXPECT_EQ(commit.abstentions, 0u);
  EXPECT_THAT(Ids(commit.voters), ElementsAre(0, 1, 2));
}

TEST_F(EngineTest, ALateBallotIsAnAbstentionNeverAnError) {
  Start(3);
  VoteAll({0, 1});
  const CommitRound commit = One<CommitRound>(DoAfter(ToDeadline(), Tick{}));
  EXPECT_EQ(commit.abstentions, 1u);
  EXPECT_EQ(Member(2).abstentions, 1u);
  EXPECT_EQ(Member(2).role, Role::kMember);
  EXPECT_TRUE(Member(2).connected);
}

TEST_F(EngineTest, BallotsQueuedBeforeTheTickAreInTime) {
  Start(2);
  Vote(0);
  now_ = now_ + ToDeadline() + Duration(seconds(5));
  const CommitRound commit = One<CommitRound>(Vote(1));
  EXPECT_EQ(commit.abstentions, 0u);
}

TEST_F(EngineTest, TheDeadlineFollowsTheSlowestRegularMember) {
  Start(3);
  for (int t = 0; t < 4; ++t) {
    now_ = now_ + Duration(seconds(1));
    VoteAll({0, 1});
    now_ = now_ + Duration(seconds(1));
    Vote(2);
  }
  // Medians 1 s, 1 s, 2 s; overall 1 s; grace = clamp(1 s, 0.5 s, 1.5 s).
  EXPECT_EQ(*last_open_.deadline, Duration(seconds(3)));
}

TEST_F(EngineTest, ARoundWithoutQuorumWaitsPastItsDeadlineAndNamesTheSilentOnce) {
  Start(3);
  Vote(0);
  const Actions first = DoAfter(ToDeadline(), Tick{});
  EXPECT_FALSE(Has<CommitRound>(first));
  EXPECT_THAT(Notices(first), HasSubstr("silent: w1, w2"));
  EXPECT_THAT(DoAfter(Duration(seconds(1)), Tick{}), IsEmpty());
  // A ballot is late only once its chunk is closed.
  const Actions actions = Vote(1);
  EXPECT_EQ(One<CommitRound>(actions).counted, (std::vector<uint32_t>{2, 2}));
}

TEST_F(EngineTest, AfterAnOverrunDeadlineScalarsStillGetTheShortestGrace) {
  Start(3);
  Vote(0);
  DoAfter(ToDeadline(), Tick{});
  Chunk(1, 0);
  EXPECT_FALSE(Has<CommitRound>(Chunk(1, 1)));
  EXPECT_EQ(*engine().NextTick(), now_ + config_.deadline.grace_floor);
  EXPECT_TRUE(Has<CommitRound>(Scalars(1)));
  EXPECT_THAT(rule_.workers, ElementsAre(2));
}

TEST_F(EngineTest, SilenceLongerThanTheWaitTimeoutEndsTheRun) {
  Start(3);
  Vote(0);
  DoAfter(ToDeadline(), Tick{});
  EXPECT_EQ(*engine().NextTick(), Time{1000} + config_.wait_timeout);
  const EndRun end = One<EndRun>(DoAfter(config_.wait_timeout, Tick{}));
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Describe(end.status), HasSubstr("silent: w1, w2"));
  EXPECT_EQ(View().phase, Phase::kEnded);
  EXPECT_FALSE(engine().NextTick().has_value());
  EXPECT_THAT(Vote(1), IsEmpty());
}

TEST_F(EngineTest, WithDeadlinesOffARoundWaitsForEveryLiveMember) {
  config_.deadline.enabled = false;
  Start(2);
  EXPECT_FALSE(last_open_.deadline.has_value());
  Vote(0);
  EXPECT_THAT(DoAfter(Duration(std::chrono::minutes(59)), Tick{}), IsEmpty());
  EXPECT_TRUE(Has<CommitRound>(Vote(1)));
}

TEST_F(EngineTest, WithDeadlinesOffMissingScalarsHoldTheCommitNoLongerThanTheWaitTimeout) {
  config_.deadline.enabled = false;
  Start(1);
  Chunk(0, 0);
  Chunk(0, 1);
  EXPECT_TRUE(Has<CommitRound>(DoAfter(config_.wait_timeout, Tick{})));
}

TEST_F(EngineTest, WaitingForWorkersEndsAfterTheWaitTimeout) {
  config_.workers_min = 2;
  Ready(0);
  EXPECT_EQ(*engine().NextTick(), now_ + config_.wait_timeout);
  const EndRun end = One<EndRun>(DoAfter(config_.wait_timeout, Tick{}));
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDeadlineExceeded);
}

// ---- abstentions and observers

TEST_F(EngineTest, AnExplicitAbstentionCountsAsAnAnswer) {
  Start(4);  // quorum 2
  Abstain(0);
  Abstain(1);
  Abstain(2);
  const CommitRound commit = One<CommitRound>(Vote(3));
  EXPECT_EQ(commit.counted, (std::vector<uint32_t>{1, 1}));
  EXPECT_EQ(commit.abstentions, 3u);
}

TEST_F(EngineTest, ChunksSentBeforeAnAbstentionStand) {
  Start(2);
  Chunk(0, 0);
  Abstain(0, AbstainReason::kNonFiniteGradient);
  EXPECT_THAT(Chunk(0, 1), IsEmpty());
  const CommitRound commit = One<CommitRound>(Vote(1));
  EXPECT_EQ(commit.counted, (std::vector<uint32_t>{2, 1}));
}

TEST_F(EngineTest, ARoundThatEveryLiveWorkerAbstainsFromEndsTheRunAsDiverged) {
  Start(3);
  Lost(2);
  Abstain(0, AbstainReason::kNonFiniteLoss);
  const Actions actions = Abstain(1, AbstainReason::kNonFiniteGradient);
  EXPECT_FALSE(Has<CommitRound>(actions));
  const EndRun end = One<EndRun>(actions);
  EXPECT_EQ(end.status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(Describe(end.status), HasSubstr("diverged in round 0"));
  EXPECT_THAT(Describe(end.status), HasSubstr("w0 (non-finite loss), w1 (non-finite gradient)"));
}

TEST_F(EngineTest, AfterFiveAbstentionsInARowAMemberIsAnObserver) {
  Start(3);
  for (int t = 0; t < 5; ++t) {
    ASSERT_THAT(Seats(), ElementsAre(0, 1, 2));
    VoteAll({0, 1});
    const Actions actions = DoAfter(ToDeadline(), Tick{});
    ASSERT_TRUE(Has<CommitRound>(actions));
    EXPECT_EQ(Has<ChangeRole>(actions), t == 4);
  }
  EXPECT_THAT(Seats(), ElementsAre(0, 1));
  EXPECT_THAT(Seats(Role::kObserver), ElementsAre(2));
  EXPECT_TRUE(Has<CommitRound>(VoteAll({0, 1})));  // nobody waits for it
}

TEST_F(EngineTest, ACountedBallotEndsARowOfAbstentions) {
  Start(3);
  for (int t = 0; t < 4; ++t) {
    VoteAll({0, 1});
    DoAfter(ToDeadline(), Tick{});
  }
  VoteAll({0, 1, 2});
  VoteAll({0, 1});
  EXPECT_FALSE(Has<ChangeRole>(DoAfter(ToDeadline(), Tick{})));
}

TEST_F(EngineTest, AnObserversBallotInTimeMakesItAMemberAndIsNotCounted) {
  Start(3);
  for (int t = 0; t < 5; ++t) {
    VoteAll({0, 1});
    DoAfter(ToDeadline(), Tick{});
  }
  Vote(2);
  const Actions actions = VoteAll({0, 1});
  EXPECT_THAT(Ids(One<CommitRound>(actions).voters), ElementsAre(0, 1));
  EXPECT_EQ(One<CommitRound>(actions).counted, (std::vector<uint32_t>{2, 2}));
  EXPECT_EQ(One<ChangeRole>(actions).role, Role::kMember);
  EXPECT_THAT(Seats(), ElementsAre(0, 1, 2));
}

TEST_F(EngineTest, AnObserverWithAPartialBallotStaysAnObserver) {
  Start(3);
  for (int t = 0; t < 5; ++t) {
    VoteAll({0, 1});
    DoAfter(ToDeadline(), Tick{});
  }
  Chunk(2, 0);
  VoteAll({0, 1});
  EXPECT_THAT(Seats(Role::kObserver), ElementsAre(2));
}

TEST_F(EngineTest, WhenOnlyObserversAreLeftTheyAreMembersAgain) {
  Start(3);
  for (int t = 0; t < 5; ++t) {
    VoteAll({0, 1});
    DoAfter(ToDeadline(), Tick{});
  }
  Lost(0);
  const Actions actions = Lost(1);
  EXPECT_EQ(One<ChangeRole>(actions).role, Role::kMember);
  EXPECT_THAT(Seats(), ElementsAre(2));
}

}  // namespace
}  // namespace signvote::round
