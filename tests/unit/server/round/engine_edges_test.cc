// Messages of the wrong time or seat, and what views and waits show at their edges, one sentence each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "server/round/engine.h"
#include "tests/unit/server/round/engine_fixture.h"

namespace signvote::round {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

// ---- views and time

TEST_F(EngineTest, AViewSaysWhereTheRunStandsAndHowMuchTimeIsLeft) {
  Start(2);
  EXPECT_EQ(View().deadline_left, last_open_.deadline);
  EXPECT_EQ(engine().View(now_ + *last_open_.deadline + Duration(seconds(1))).deadline_left,
            Duration(0));
  VoteAll({0, 1});
  EXPECT_EQ(View().round, Round(1));
  EXPECT_EQ(View().data_step, DataStep(1));
  EXPECT_EQ(View().main_rounds, 1u);
  hold_durable_ = true;
  VoteAll({0, 1});
  EXPECT_FALSE(View().deadline_left.has_value());
}

TEST_F(EngineTest, AViewNamesTheMembersThatAreStillInTheOpenRound) {
  Start(4);
  Ready(4);
  Do(WorkerLeaves{Id(1), Inc(1)});
  Lost(2);
  EXPECT_TRUE(Member(0).member_of_open_round);
  EXPECT_FALSE(Member(1).member_of_open_round);
  EXPECT_FALSE(Member(2).member_of_open_round);
  EXPECT_TRUE(Member(3).member_of_open_round);
  EXPECT_FALSE(Member(4).member_of_open_round);
  hold_durable_ = true;
  ASSERT_TRUE(Has<CommitRound>(VoteAll({0, 3})));
  EXPECT_FALSE(Member(0).member_of_open_round) << "none is open";
}

TEST_F(EngineTest, TimeNeverGoesBack) {
  Start(1);
  DoAfter(seconds(5), Tick{});
  now_ = Time{1000} + Duration(seconds(2));
  EXPECT_EQ(One<CommitRound>(Vote(0)).opened_for, Duration(seconds(5)));
}

TEST_F(EngineTest, AfterItsEndEveryEventIsIgnored) {
  Start(1);
  config_.workers_min = 1;
  hold_tallies_ = true;
  Vote(0);
  Do(StopRequestedEvent{});
  ASSERT_TRUE(Has<EndRun>(Sleep()));
  EXPECT_FALSE(engine().NextTick().has_value());
  EXPECT_THAT(Ready(1), IsEmpty());
  EXPECT_THAT(Do(PauseRequested{}), IsEmpty());
  EXPECT_EQ(Totals().joins, 1u);
}

TEST_F(EngineTest, ABackOffIsLeftAtItsEndOrWhenNoStepCameForTooLong) {
  config_.wait_timeout = Duration(milliseconds(1500));
  Start(1);
  Abstain(0, AbstainReason::kOther);
  Abstain(0, AbstainReason::kOther);
  ASSERT_EQ(View().phase, Phase::kBackingOff);
  EXPECT_EQ(*engine().NextTick(), Time{1000} + Duration(seconds(1)));
  EXPECT_THAT(DoAfter(milliseconds(999), Tick{}), IsEmpty());
  EXPECT_TRUE(Has<OpenRound>(Sleep()));
  Abstain(0, AbstainReason::kOther);
  Abstain(0, AbstainReason::kOther);
  EXPECT_EQ(*engine().NextTick(), Time{1000} + Duration(milliseconds(1500)));
  EXPECT_EQ(One<EndRun>(Sleep()).status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(EngineTest, AnOverdueTallyEndsTheRunAndNobodyIsCalledSilent) {
  config_.deadline.enabled = false;
  hold_tallies_ = true;
  Start(1);
  Vote(0);
  const absl::Status status = One<EndRun>(Sleep()).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Describe(status), HasSubstr("for the tally in round 0"));
  EXPECT_THAT(Describe(status), HasSubstr("silent: nobody"));
  EXPECT_EQ(now_, Time{1000} + config_.wait_timeout);
}

TEST_F(EngineTest, WhatTheQuorumClosedAtTheLastMomentGetsTwoSecondsToBeTallied) {
  config_.deadline.enabled = false;
  hold_tallies_ = true;
  Start(3);
  VoteAll({0, 1});
  EXPECT_EQ(All<CloseChunk>(Sleep()).size(), 2u);
  EXPECT_EQ(now_, Time{1000} + config_.wait_timeout);
  EXPECT_EQ(*engine().NextTick(), now_ + Duration(seconds(2)));
  EXPECT_THAT(DoAfter(seconds(1), Tick{}), IsEmpty());
  EXPECT_EQ(One<EndRun>(Sleep()).status.code(), absl::StatusCode::kDeadlineExceeded);
}

// ---- messages of the wrong seat

TEST_F(EngineTest, AChunkOfTheOpenRoundFromOneWithoutASeatIsStaleAndNotLate) {
  Start(1);
  Ready(1);
  EXPECT_THAT(Chunk(1, 0), IsEmpty());
  EXPECT_EQ(Totals().stale_messages, 1u);
  EXPECT_EQ(Totals().late_chunks, 0u);
  EXPECT_THAT(Abstain(1), IsEmpty());
  EXPECT_EQ(Totals().stale_messages, 2u);
}

TEST_F(EngineTest, AChunkThatComesAfterItsChunkWasClosedIsLateWhenItIsAMembers) {
  config_.observer_after = 1;
  Start(3);
  VoteAll({0, 1});
  Chunk(2, 0);
  hold_tallies_ = true;
  ASSERT_EQ(All<CloseChunk>(DoAfter(ToDeadline(), Tick{})).size(), 1u);
  EXPECT_THAT(Chunk(2, 1), IsEmpty());
  EXPECT_EQ(Totals().late_chunks, 1u);
  EXPECT_EQ(Member(2).late_chunks, 1u);
  EXPECT_EQ(Totals().duplicate_chunks, 0u);
  for (const ChunkTallied& tally : held_) Do(tally);
  Sleep();
  ASSERT_THAT(Seats(Role::kObserver), ElementsAre(2));
  VoteAll({0, 1});
  EXPECT_THAT(Chunk(2, 0), IsEmpty());
  EXPECT_EQ(Totals().late_chunks, 1u) << "an observer's counts for nothing";
}

TEST_F(EngineTest, AnAbstentionIsSaidOncePerRowAndOnlyOfMembers) {
  config_.observer_after = 2;
  Start(2);
  EXPECT_EQ(Notices(Abstain(1)), "w1 abstains in round 0: non-finite loss\n");
  EXPECT_THAT(Abstain(1), IsEmpty());
  EXPECT_EQ(Totals().stale_messages, 1u);
  Vote(0);
  EXPECT_EQ(Notices(Abstain(1)), "");
  Vote(0);
  ASSERT_THAT(Seats(Role::kObserver), ElementsAre(1));
  Lost(1);
  Ready(1);
  Vote(0);
  EXPECT_THAT(Notices(Abstain(1)), HasSubstr("w1 abstains in round 3"));
}

TEST_F(EngineTest, AWorkerLeavesOnce) {
  Start(2);
  EXPECT_THAT(Notices(Do(WorkerLeaves{Id(1), Inc(1)})), HasSubstr("w1 leaves in round 0"));
  EXPECT_THAT(Do(WorkerLeaves{Id(1), Inc(1)}), IsEmpty());
  Lost(1);
  EXPECT_THAT(Notices(Do(DrainRequested{Id(1)})), HasSubstr("cannot drain worker number 1"));
}

TEST_F(EngineTest, ADurableCommitThatNobodyWaitsForIsStale) {
  Start(1);
  EXPECT_THAT(Do(CommitDurable{Round(0)}), IsEmpty());
  hold_durable_ = true;
  Vote(0);
  EXPECT_THAT(Do(CommitDurable{Round(1)}), IsEmpty());
  EXPECT_EQ(View().phase, Phase::kCommitting);
  EXPECT_EQ(Totals().stale_messages, 2u);
  EXPECT_TRUE(Has<OpenRound>(Do(CommitDurable{Round(0)})));
}

TEST_F(EngineTest, WhatOneWhoIsGoneHadStillSentIsStale) {
  Start(3);
  Chunk(2, 0);
  Lost(2);
  EXPECT_THAT(Chunk(2, 0), IsEmpty());
  EXPECT_THAT(Chunk(2, 1), IsEmpty());
  EXPECT_THAT(Scalars(2), IsEmpty());
  EXPECT_THAT(Abstain(2), IsEmpty());
  EXPECT_EQ(Totals().stale_messages, 4u);
  EXPECT_EQ(Totals().duplicate_chunks, 0u);
}

TEST_F(EngineTest, ScalarsThatAreUsedAreNotCountedAsRefused) {
  Start(2);
  Vote(0);
  EXPECT_EQ(Totals().scalars_refused, 0u);
}

// ---- openings

TEST_F(EngineTest, AReopeningThatFindsNobodySaysWhatItWaitsFor) {
  Start(1);
  EXPECT_THAT(Notices(Lost(0)), HasSubstr("round 0 waits for workers: too few are ready"));
  EXPECT_EQ(View().attempt, Attempt(1));
}

TEST_F(EngineTest, ASeatOfAnEarlierAttemptKeepsNoName) {
  config_.workers_max = 4;
  Start(4);
  for (const uint32_t w : {1u, 2u, 3u}) Lost(w);
  ASSERT_EQ(attempt_, Attempt(1));
  Ready(4);
  EXPECT_EQ(View().workers.size(), 4u);
}

TEST_F(EngineTest, WhoBecomesReadyOpensARoundAgainOnlyWhenItIsOverdueAndCounting) {
  Start(3);
  Abstain(0, AbstainReason::kOther);
  EXPECT_FALSE(Has<OpenRound>(Ready(3))) << "the deadline has not passed";
  Vote(1);
  hold_tallies_ = true;
  Sleep();
  ASSERT_EQ(View().phase, Phase::kRoundOpen);
  EXPECT_FALSE(Has<OpenRound>(Ready(4))) << "every chunk is closed";
}

TEST_F(EngineTest, ARoundOpensAgainAtMostThreeTimesForWantOfBallots) {
  Start(1);
  Actions last;
  for (uint32_t newcomer = 1; newcomer < 6 && !Has<CommitRound>(last); ++newcomer) {
    Ready(newcomer);
    for (const uint32_t w : Seats()) last = Abstain(w, AbstainReason::kOther);
  }
  EXPECT_EQ(One<CommitRound>(last).kind, CommitKind::kNone);
  EXPECT_EQ(One<CommitRound>(last).wait, Duration(0));
  EXPECT_EQ(Totals().attempts_reopened, 3u);
  EXPECT_EQ(Totals().rounds_without_step, 1u);
  EXPECT_THAT(Notices(last), HasSubstr("round 0 closes without a step: no ballot"));
}

TEST_F(EngineTest, AnOverdueRoundOpensAgainAtMostThreeTimesForTheReady) {
  Start(3);
  Abstain(0, AbstainReason::kOther);
  Sleep();
  for (uint32_t newcomer = 3; newcomer < 6; ++newcomer) {
    ASSERT_TRUE(Has<OpenRound>(Ready(newcomer)));
    Sleep();
  }
  EXPECT_FALSE(Has<OpenRound>(Ready(6)));
}

// ---- digests

TEST_F(EngineTest, DigestsAreDueInEverySecondRoundWhenTheRunSaysSo) {
  config_.digest_every = 2;
  Start(1);
  std::vector<bool> due;
  for (int t = 0; t < 4; ++t) due.push_back(One<CommitRound>(Vote(0)).digest_due);
  EXPECT_EQ(due, (std::vector<bool>{false, true, false, true}));
}

TEST_F(EngineTest, AMajorityAgainstTheReplicaIsNamedAndCounted) {
  config_.digest_every = 1;
  Start(3);
  VoteAll({0, 1, 2});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(2), Inc(2), Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 66});
  const absl::Status status = One<EndRun>(Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 66})).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Describe(status), HasSubstr("after 1 rounds: w0, w1"));
  EXPECT_THAT(Describe(status), Not(HasSubstr("w2")));
  EXPECT_EQ(Totals().digest_mismatches, 2u);
}

TEST_F(EngineTest, AReplicaThatDiffersIsSaidByNameAndRound) {
  config_.digest_every = 1;
  Start(3);
  VoteAll({0, 1, 2});
  Do(MasterDigestIn{Round(1), 77});
  for (const uint32_t w : {0u, 1u}) Do(WorkerDigestIn{Id(w), Inc(w), Round(1), 77});
  EXPECT_EQ(Notices(Do(WorkerDigestIn{Id(2), Inc(2), Round(1), 66})),
            "the replica of w2 differs after round 1\n");
}

TEST_F(EngineTest, ADigestOfARoundToComeIsStale) {
  config_.digest_every = 1;
  Start(1);
  EXPECT_THAT(Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 6}), IsEmpty());
  EXPECT_THAT(Do(MasterDigestIn{Round(1), 6}), IsEmpty());
  EXPECT_EQ(Totals().stale_messages, 2u);
}

}  // namespace
}  // namespace signvote::round
