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
  EXPECT_THAT(open.wanted, IsEmpty());
  EXPECT_FALSE(open.reopening);
  EXPECT_EQ(open.members, 2u);
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
  EXPECT_EQ(Counted(One<CommitRound>(actions)), (std::vector<uint32_t>{1, 1}));
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

TEST_F(EngineTest, TheRuleSaysWhichScalarsARoundWants) {
  Start(1);
  EXPECT_THAT(last_open_.wanted, IsEmpty());
  EXPECT_THAT(One<CommitRound>(Vote(0)).asked, IsEmpty());
  const std::vector<ScalarKind> both = {ScalarKind::kProbeL1, ScalarKind::kPrevInner};
  EXPECT_EQ(last_open_.wanted, both);
  EXPECT_EQ(One<CommitRound>(Vote(0)).asked, both);
  EXPECT_THAT(last_open_.wanted, IsEmpty());
}

TEST_F(EngineTest, EachSeatIsAskedForAsMuchAsTheRuleSays) {
  rule_.first_share_alone = true;
  Start(2);
  VoteAll({0, 1});
  ASSERT_EQ(last_open_.wanted.size(), 2u);
  ASSERT_EQ(last_open_.seats.size(), 2u);
  EXPECT_EQ(last_open_.seats[0].wanted, 2u);
  EXPECT_EQ(last_open_.seats[1].wanted, 1u);
  VoteAll({0, 1});
  EXPECT_THAT(rule_.shares, ElementsAre(0, 1));
}

TEST_F(EngineTest, ANewcomerIsAdmittedOnlyWhenTheNextRoundOpens) {
  Start(2);
  EXPECT_THAT(All<OpenRound>(Ready(2)), IsEmpty());
  Chunk(2, 0);
  EXPECT_EQ(Totals().stale_messages, 1u);
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
  EXPECT_EQ(commit.gamma, 0.5f);
  EXPECT_EQ(*commit.loss, 2.0);
  EXPECT_EQ(*commit.gradient.l1, 3.0);
  EXPECT_DOUBLE_EQ(*commit.gradient.density, 9.0 / (1000 * 1.5));
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
  bad.loss = std::numeric_limits<double>::quiet_NaN();
  const Actions actions = Scalars(1, bad);
  const CommitRound commit = One<CommitRound>(actions);
  EXPECT_EQ(Counted(commit), (std::vector<uint32_t>{2, 2}));
  ASSERT_EQ(commit.scalars_from.size(), 1u);
  EXPECT_EQ(commit.scalars_from[0].worker, WorkerId(0));
  EXPECT_EQ(commit.scalars_from[0].share, Share(0));
  EXPECT_EQ(Totals().scalars_refused, 1u);
  EXPECT_THAT(rule_.workers, ElementsAre(1));
  EXPECT_THAT(Notices(actions), HasSubstr("w1 sent scalars in round 0 that are not finite"));
  EXPECT_EQ(Member(1).ballots, 1u);  // they came
}

TEST_F(EngineTest, RefusedScalarsAreSaidOncePerRowOfThem) {
  Start(1);
  WorkerScalars bad = SomeScalars();
  bad.g_l1 = -1;
  EXPECT_THAT(Notices(Scalars(0, bad)), HasSubstr("w0 sent scalars"));
  VoteAll({0});
  bad.wanted = {1, 1};
  EXPECT_EQ(Notices(Scalars(0, bad)), "");
  VoteAll({0});
  VoteAll({0});
  bad.wanted = {1, 1};
  EXPECT_THAT(Notices(Scalars(0, bad)), HasSubstr("w0 sent scalars"));
}

TEST_F(EngineTest, TheFirstScalarsOfABallotStand) {
  Start(1);
  Scalars(0);
  WorkerScalars other = SomeScalars();
  other.loss = 77;
  EXPECT_THAT(Scalars(0, other), IsEmpty());
  EXPECT_EQ(Totals().stale_messages, 1u);
  Chunk(0, 0);
  EXPECT_EQ(*One<CommitRound>(Chunk(0, 1)).loss, 2.0);
}

TEST_F(EngineTest, ARepeatedChunkIsCountedOnceAndIgnored) {
  Start(2);
  Chunk(0, 0);
  EXPECT_FALSE(Has<CloseChunk>(Chunk(0, 0)));
  EXPECT_EQ(Totals().duplicate_chunks, 1u);
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
  EXPECT_EQ(Totals().stale_messages, 5u);
  EXPECT_EQ(Counted(One<CommitRound>(VoteAll({0, 1}))), (std::vector<uint32_t>{2, 2}));
}

TEST_F(EngineTest, AChunkOfACommittedRoundIsLate) {
  Start(1);
  Vote(0);
  Do(BallotChunkIn{Id(0), Inc(0), Round(0), Attempt(0), ChunkIndex(0)});
  EXPECT_EQ(Totals().late_chunks, 1u);
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
  for (uint64_t t = 0; t < 5; ++t) EXPECT_EQ(rule_.ahead[t].round, Round(t));
}

// ---- deadlines

TEST_F(EngineTest, AtTheDeadlineAChunkClosesWithTheQuorumAndTheRestAbstained) {
  Start(3);
  VoteAll({0, 1});
  Chunk(2, 0);
  const Actions actions = DoAfter(ToDeadline(), Tick{});
  const CommitRound commit = One<CommitRound>(actions);
  EXPECT_EQ(Counted(commit), (std::vector<uint32_t>{3, 2}));
  EXPECT_EQ(commit.abstentions, 1u);
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
  EXPECT_EQ(Counted(One<CommitRound>(actions)), (std::vector<uint32_t>{2, 2}));
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
  EXPECT_EQ(Counted(commit), (std::vector<uint32_t>{1, 1}));
  EXPECT_EQ(commit.abstentions, 3u);
}

TEST_F(EngineTest, ChunksSentBeforeAnAbstentionStand) {
  Start(2);
  Chunk(0, 0);
  Abstain(0, AbstainReason::kNonFiniteGradient);
  EXPECT_THAT(Chunk(0, 1), IsEmpty());
  const CommitRound commit = One<CommitRound>(Vote(1));
  EXPECT_EQ(Counted(commit), (std::vector<uint32_t>{2, 1}));
}

TEST_F(EngineTest, AfterFiveAbstentionsInARowAMemberIsAnObserver) {
  Start(3);
  for (int t = 0; t < 5; ++t) {
    ASSERT_THAT(Seats(), ElementsAre(0, 1, 2));
    VoteAll({0, 1});
    const Actions actions = DoAfter(ToDeadline(), Tick{});
    ASSERT_TRUE(Has<CommitRound>(actions));
    EXPECT_EQ(Has<RoleChanged>(actions), t == 4);
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
  EXPECT_FALSE(Has<RoleChanged>(DoAfter(ToDeadline(), Tick{})));
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
  EXPECT_EQ(Counted(One<CommitRound>(actions)), (std::vector<uint32_t>{2, 2}));
  EXPECT_EQ(One<RoleChanged>(actions).role, Role::kMember);
  EXPECT_THAT(Seats(), ElementsAre(0, 1, 2));
}

TEST_F(EngineTest, AnObserverWhoseBallotDoesNotCountAsGivenStaysAnObserver) {
  Start(3);
  for (int t = 0; t < 5; ++t) {
    VoteAll({0, 1});
    DoAfter(ToDeadline(), Tick{});
  }
  Chunk(2, 0);
  Scalars(2);
  VoteAll({0, 1});
  EXPECT_THAT(Seats(Role::kObserver), ElementsAre(2));
  Chunk(2, 0);
  Chunk(2, 1);
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
  EXPECT_EQ(One<RoleChanged>(actions).role, Role::kMember);
  EXPECT_THAT(Seats(), ElementsAre(2));
}

// ---- ballots that do not count as given

TEST_F(EngineTest, NinetyPercentOfTheChunksWithScalarsAreABallotGiven) {
  config_.chunks = 10;
  Start(3);
  for (int t = 0; t < 6; ++t) {
    VoteAll({0, 1});
    Scalars(2);
    for (uint32_t k = 0; k < 9; ++k) Chunk(2, k);
    const CommitRound commit = One<CommitRound>(DoAfter(ToDeadline(), Tick{}));
    EXPECT_EQ(commit.abstentions, 0u);
    EXPECT_EQ(commit.chunks[8].counted, 3u);
    EXPECT_EQ(commit.chunks[9].counted, 2u);
  }
  EXPECT_EQ(Member(2).ballots, 6u);
  EXPECT_EQ(Member(2).abstentions, 0u);
  EXPECT_EQ(Member(2).role, Role::kMember);
}

TEST_F(EngineTest, AMemberThatIsLateWithTooManyChunksIsDemotedAndItsShareIsNamed) {
  config_.chunks = 10;
  Start(3);
  std::string said;
  for (int t = 0; t < 5; ++t) {
    VoteAll({0, 1});
    Scalars(2);
    for (uint32_t k = 0; k < 8; ++k) Chunk(2, k);
    const Actions actions = DoAfter(ToDeadline(), Tick{});
    EXPECT_EQ(One<CommitRound>(actions).chunks[7].counted, 3u);  // what was counted stays
    EXPECT_EQ(Has<RoleChanged>(actions), t == 4);
    said += Notices(actions);
  }
  EXPECT_THAT(said, HasSubstr("the ballot of w2 counts as an abstention in round 0: 8 of 10 chunks "
                              "(80 %)"));
  EXPECT_THAT(said, testing::Not(HasSubstr("abstention in round 1")));
  EXPECT_THAT(said, HasSubstr("w2 is an observer from round 5 on: 5 rounds in a row without a "
                              "ballot in time, last 8 of 10 chunks (80 %)"));
  EXPECT_EQ(Member(2).abstentions, 5u);
  EXPECT_EQ(Member(2).ballots, 0u);
}

TEST_F(EngineTest, AMemberThatNeverSendsScalarsIsDemoted) {
  Start(3);
  std::string said;
  for (int t = 0; t < 5; ++t) {
    VoteAll({0, 1});
    Chunk(2, 0);
    Chunk(2, 1);
    Actions actions = DoAfter(ToDeadline(), Tick{});
    if (!Has<CommitRound>(actions)) actions = Sleep();
    ASSERT_TRUE(Has<CommitRound>(actions));
    said += Notices(actions);
  }
  EXPECT_THAT(said, HasSubstr("2 of 2 chunks (100 %), no scalars"));
  EXPECT_EQ(Member(2).role, Role::kObserver);
}

// ---- what the deadline learns

TEST_F(EngineTest, ArrivalsAreThoseOfTheLastChunkAlsoOfIncompleteBallots) {
  Start(3);
  now_ = now_ + Duration(seconds(1));
  VoteAll({0, 1});
  Chunk(2, 0);
  EXPECT_TRUE(Has<CommitRound>(DoAfter(ToDeadline(), Tick{})));
  EXPECT_EQ(*Member(0).median_arrival, Duration(seconds(1)));
  EXPECT_EQ(*Member(2).median_arrival, Duration(seconds(1)));
  // The other chunk comes five seconds after the commit: that is how long its ballot took.
  Actions late = DoAfter(Duration(seconds(5)),
                         BallotChunkIn{Id(2), Inc(2), Round(0), Attempt(0), ChunkIndex(1)});
  EXPECT_THAT(late, IsEmpty());
  EXPECT_EQ(*Member(2).median_arrival, Duration(seconds(65)));
  EXPECT_EQ(Member(2).late_chunks, 1u);
}

TEST_F(EngineTest, ALateBallotOfWhichNothingCameInTimeTeachesTheDeadlineToo) {
  Start(3);
  VoteAll({0, 1});
  DoAfter(ToDeadline(), Tick{});
  EXPECT_FALSE(Member(2).median_arrival.has_value());
  DoAfter(Duration(seconds(3)), BallotChunkIn{Id(2), Inc(2), Round(0), Attempt(0), ChunkIndex(0)});
  DoAfter(Duration(seconds(1)), BallotChunkIn{Id(2), Inc(2), Round(0), Attempt(0), ChunkIndex(1)});
  EXPECT_EQ(*Member(2).median_arrival, Duration(seconds(64)));
}

TEST_F(EngineTest, WhatIsResentToALaterAttemptSaysNothingAboutArrivals) {
  Start(4);
  Lost(1);
  Lost(2);
  Lost(3);
  ASSERT_EQ(attempt_, Attempt(1));
  now_ = now_ + Duration(seconds(7));
  ASSERT_TRUE(Has<CommitRound>(Vote(0)));
  EXPECT_FALSE(Member(0).median_arrival.has_value());
  DoAfter(Duration(seconds(1)), BallotChunkIn{Id(0), Inc(0), Round(0), Attempt(0), ChunkIndex(1)});
  EXPECT_FALSE(Member(0).median_arrival.has_value());
}

TEST_F(EngineTest, WithTwoMembersTheDeadlineDoesNotCreepWithoutBound) {
  config_.chunks = 16;
  Start(2);
  Duration longest{};
  std::string said;
  for (int t = 0; t < 400; ++t) {
    now_ = now_ + Duration(seconds(1));
    Vote(0);
    Scalars(1);
    for (uint32_t k = 0; k < 15; ++k) Chunk(1, k);
    // One chunk of w1 comes just before the deadline; in the first rounds it comes after 2 s.
    const Duration wait = t < 16 ? Duration(seconds(1)) : ToDeadline() - Duration(1);
    now_ = now_ + wait;
    const Actions actions = Chunk(1, 15);
    ASSERT_TRUE(Has<CommitRound>(actions));
    said += Notices(actions);
    if (t >= 16) longest = std::max(longest, *last_open_.deadline);
  }
  EXPECT_LE(longest, Duration(seconds(16)));  // 8 times 2 s
  EXPECT_GT(longest, Duration(seconds(15)));
  const std::string words = "w1 is waited for no longer than 16 s";
  ASSERT_THAT(said, HasSubstr(words));
  EXPECT_EQ(said.find(words), said.rfind(words));
  EXPECT_THAT(said, HasSubstr("--deadline-growth"));
}

}  // namespace
}  // namespace signvote::round
