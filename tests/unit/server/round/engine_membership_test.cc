// Deaths, attempts, shares, the operator, digests and the end of the run, one sentence each.
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

// ---- deaths, attempts, incarnations

TEST_F(EngineTest, ALostMemberStopsBeingWaitedForAtOnce) {
  Start(3);
  VoteAll({0, 1});
  const Actions actions = Lost(2);
  EXPECT_EQ(Counted(One<CommitRound>(actions)), (std::vector<uint32_t>{2, 2}));
  EXPECT_EQ(Totals().losses, 1u);
}

TEST_F(EngineTest, ADeadMembersChunksThatAreInStillCount) {
  Start(3);
  Chunk(2, 0);
  Lost(2);
  const Actions actions = VoteAll({0, 1});
  EXPECT_EQ(Counted(One<CommitRound>(actions)), (std::vector<uint32_t>{3, 2}));
}

TEST_F(EngineTest, DeathsBelowTheQuorumOpenTheNextAttemptWithEverybodyReady) {
  Start(4);  // quorum 2
  Ready(4);
  Chunk(0, 0);
  Lost(1);
  Lost(2);
  const Actions actions = Lost(3);
  const OpenRound open = One<OpenRound>(actions);
  EXPECT_EQ(open.round, Round(0));
  EXPECT_EQ(open.attempt, Attempt(1));
  EXPECT_EQ(open.quorum, 1u);
  EXPECT_THAT(Seats(), ElementsAre(0, 4));
  EXPECT_EQ(Totals().attempts_reopened, 1u);
  // Survivors resend; what was sent to the earlier attempt counts no more.
  EXPECT_EQ(Counted(One<CommitRound>(VoteAll({0, 4}))), (std::vector<uint32_t>{2, 2}));
}

TEST_F(EngineTest, ADeadMembersCompleteBallotCountsForTheQuorum) {
  Start(4);  // quorum 2
  Vote(1);
  Lost(1);
  Lost(2);
  EXPECT_FALSE(Has<OpenRound>(Lost(3)));
  EXPECT_EQ(Counted(One<CommitRound>(Vote(0))), (std::vector<uint32_t>{2, 2}));
}

TEST_F(EngineTest, WithNobodyLeftOneNewcomerSufficesForTheNextAttempt) {
  Start(2);
  Vote(0);
  Lost(1);  // commits round 0
  ASSERT_EQ(round_, Round(1));
  Lost(0);
  EXPECT_EQ(View().phase, Phase::kWaitingForWorkers);
  const OpenRound open = One<OpenRound>(Ready(1));
  EXPECT_EQ(open.round, Round(1));
  EXPECT_EQ(open.attempt, Attempt(1));
}

TEST_F(EngineTest, AnIncarnationNeverAddsAVote) {
  Start(2);
  Chunk(0, 0);
  Lost(0);
  Ready(0);
  EXPECT_THAT(Chunk(0, 0), IsEmpty());
  EXPECT_THAT(Chunk(0, 1), IsEmpty());
  const CommitRound commit = One<CommitRound>(Vote(1));
  EXPECT_EQ(Counted(commit), (std::vector<uint32_t>{2, 1}));
  EXPECT_THAT(Seats(), ElementsAre(0, 1));
}

TEST_F(EngineTest, AHigherIncarnationReplacesALiveOne) {
  Start(2);
  Vote(1);
  EXPECT_TRUE(Has<CommitRound>(Ready(0)));  // the older session was the last one waited for
  EXPECT_EQ(Totals().losses, 1u);
  EXPECT_EQ(Totals().joins, 3u);
  EXPECT_EQ(last_open_.seats[0].incarnation, Incarnation(2));
  EXPECT_THAT(Do(WorkerLost{Id(0), Incarnation(1)}), IsEmpty());
  EXPECT_THAT(Do(WorkerReady{Id(0), Incarnation(2), "w0"}), IsEmpty());
  EXPECT_EQ(Totals().losses, 1u);
  EXPECT_EQ(Totals().stale_messages, 2u);
}

// ---- warm-in

class WarmInTest : public EngineTest {
 protected:
  WarmInTest() { config_.warm_in_rounds = 2; }
  // Comes without a replica of the run.
  Actions Newcomer(uint32_t w) {
    ++incarnations_[w];
    return Do(WorkerReady{
        .worker = Id(w), .incarnation = Inc(w), .name = "w" + std::to_string(w), .fetched = true});
  }
  std::vector<uint32_t> Uncounted() const {
    std::vector<uint32_t> ids;
    for (const Seat& seat : last_open_.seats) {
      if (seat.uncounted) ids.push_back(seat.worker.value());
    }
    return ids;
  }
};

TEST_F(WarmInTest, AtTheStartEverybodyIsWarmThoughMostFetchTheState) {
  config_.workers_min = 3;
  Ready(0);
  Newcomer(1);
  Newcomer(2);
  ASSERT_EQ(View().phase, Phase::kRoundOpen);
  EXPECT_THAT(Uncounted(), IsEmpty());
  EXPECT_EQ(last_open_.members, 3u);
}

TEST_F(WarmInTest, ANewcomersBallotsAreNeitherCountedNorWaitedForUntilItIsWarm) {
  Start(3);
  Newcomer(3);
  VoteAll({0, 1, 2});
  for (int round = 0; round < 2; ++round) {
    EXPECT_THAT(Uncounted(), ElementsAre(3));
    EXPECT_EQ(last_open_.members, 3u);
    EXPECT_EQ(last_open_.quorum, 2u);
    if (round == 0) Vote(3);  // in time, and of no weight; the second time it is silent
    const CommitRound commit = One<CommitRound>(VoteAll({0, 1, 2}));
    EXPECT_EQ(Counted(commit), (std::vector<uint32_t>{3, 3}));
    EXPECT_THAT(Ids(commit.voters), ElementsAre(0, 1, 2));
    EXPECT_EQ(commit.abstentions, 0u);
  }
  EXPECT_THAT(Uncounted(), IsEmpty());
  EXPECT_EQ(Member(3).abstentions, 0u);
  EXPECT_EQ(Counted(One<CommitRound>(VoteAll({0, 1, 2, 3}))), (std::vector<uint32_t>{4, 4}));
}

TEST_F(WarmInTest, WithFewerWarmMembersThanAQuorumEverybodyCounts) {
  Start(1);
  Newcomer(1);
  Newcomer(2);
  Newcomer(3);
  Vote(0);
  EXPECT_THAT(Uncounted(), IsEmpty()) << "one of four is less than the quorum of two";
  EXPECT_EQ(last_open_.members, 4u);
  EXPECT_EQ(last_open_.quorum, 2u);
}

TEST_F(WarmInTest, WhenTheLastWarmMembersDieTheNextAttemptCountsEverybody) {
  Start(2);
  Newcomer(2);
  VoteAll({0, 1});
  EXPECT_THAT(Uncounted(), ElementsAre(2));
  Lost(0);
  const OpenRound open = One<OpenRound>(Lost(1));
  EXPECT_EQ(open.attempt, Attempt(1));
  EXPECT_THAT(Uncounted(), IsEmpty());
  EXPECT_EQ(Counted(One<CommitRound>(Vote(2))), (std::vector<uint32_t>{1, 1}));
}

TEST_F(WarmInTest, AfterALossOfAllTheFirstToComeBackIsWarm) {
  Start(2);
  VoteAll({0, 1});
  Lost(0);
  Lost(1);
  Newcomer(2);
  EXPECT_THAT(Uncounted(), IsEmpty());
}

TEST_F(WarmInTest, AfterARewindEverybodyIsWarm) {
  Start(2);
  Newcomer(2);
  rule_.next = {.kind = CommitKind::kRewind, .gamma = 0.5f, .reason = "spy"};
  VoteAll({0, 1});
  EXPECT_THAT(Uncounted(), IsEmpty());
  EXPECT_EQ(last_open_.members, 3u);
}

TEST_F(WarmInTest, WhoKeptItsReplicaIsWarm) {
  Start(3);
  Lost(2);
  Ready(2);
  VoteAll({0, 1});
  EXPECT_THAT(Uncounted(), IsEmpty());
}

TEST_F(WarmInTest, WhoIsLostBeforeItIsWarmAndComesBackWithItsReplicaHasTheRestBeforeIt) {
  Start(3);
  Newcomer(3);
  VoteAll({0, 1, 2});
  VoteAll({0, 1, 2});  // the first of two
  Lost(3);
  Ready(3);
  VoteAll({0, 1, 2});
  EXPECT_THAT(Uncounted(), ElementsAre(3));
  VoteAll({0, 1, 2});
  EXPECT_THAT(Uncounted(), IsEmpty());
  EXPECT_EQ(last_open_.members, 4u);
}

TEST_F(WarmInTest, WhoIsLostBeforeItIsWarmIsWarmAfterALossOfAll) {
  Start(2);
  Newcomer(2);
  VoteAll({0, 1});
  for (const uint32_t w : {0u, 1u, 2u}) Lost(w);
  Ready(2);
  EXPECT_THAT(Uncounted(), IsEmpty());
}

// ---- shares

TEST_F(EngineTest, AReturningWorkerGetsItsOwnShareBack) {
  Start(3);
  Lost(1);
  Ready(3);
  VoteAll({0, 2});
  EXPECT_EQ(last_open_.seats.back().share, Share(3));  // share 1 is reserved
  Ready(1);
  VoteAll({0, 2, 3});
  EXPECT_EQ(Member(1).share, Share(1));
}

TEST_F(EngineTest, AReservedShareIsFreeAfterTheHoldTime) {
  config_.share_hold_rounds = 2;
  Start(3);
  Lost(1);
  VoteAll({0, 2});
  VoteAll({0, 2});
  Ready(3);
  VoteAll({0, 2});
  EXPECT_EQ(Member(3).share, Share(1));
  Ready(1);
  VoteAll({0, 2, 3});
  EXPECT_EQ(Member(1).share, Share(3));
}

// ---- the operator

TEST_F(EngineTest, ADrainedWorkerIsAskedLeavesAndIsNoLoss) {
  Start(2);
  EXPECT_EQ(One<AskToDrain>(Do(DrainRequested{Id(1)})).incarnation, Inc(1));
  Vote(0);
  const Actions actions = Do(WorkerLeaves{Id(1), Inc(1)});
  EXPECT_TRUE(Has<CommitRound>(actions));  // nobody waits for it
  EXPECT_THAT(Seats(), ElementsAre(0));
  Lost(1);
  EXPECT_EQ(Totals().losses, 0u);
}

TEST_F(EngineTest, WhatALeavingWorkerHasSentStillCounts) {
  Start(2);
  Vote(1);
  Do(WorkerLeaves{Id(1), Inc(1)});
  EXPECT_EQ(Counted(One<CommitRound>(Vote(0))), (std::vector<uint32_t>{2, 2}));
}

TEST_F(EngineTest, DrainingAStrangerIsANotice) {
  Start(1);
  EXPECT_THAT(Notices(Do(DrainRequested{Id(7)})), HasSubstr("cannot drain"));
}

TEST_F(EngineTest, EvictingOneThatIsNotReadyYetIsNoMatterOfTheEngine) {
  Start(1);
  EXPECT_TRUE(Do(EvictRequested{Id(7)}).empty());
}

TEST_F(EngineTest, AnEvictedWorkerIsDisconnectedAndStaysOut) {
  Start(2);
  Vote(0);
  const Actions actions = Do(EvictRequested{Id(1)});
  EXPECT_EQ(One<Disconnect>(actions).status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(Has<CommitRound>(actions));
  const Actions again = Ready(1);
  EXPECT_EQ(One<Disconnect>(again).status.code(), absl::StatusCode::kPermissionDenied);
  Vote(0);
  EXPECT_THAT(Seats(), ElementsAre(0));
}

TEST_F(EngineTest, APauseLetsTheOpenRoundCompleteAndOpensNoOther) {
  Start(1);
  Do(PauseRequested{});
  EXPECT_EQ(View().phase, Phase::kRoundOpen);
  const Actions actions = Vote(0);
  EXPECT_TRUE(Has<CommitRound>(actions));
  EXPECT_FALSE(Has<OpenRound>(actions));
  EXPECT_EQ(View().phase, Phase::kPaused);
  EXPECT_FALSE(engine().NextTick().has_value());
  EXPECT_EQ(One<OpenRound>(Do(ResumeRequested{})).round, Round(1));
}

TEST_F(EngineTest, APausedRoundStillOpensItsNextAttempt) {
  Start(3);
  Do(PauseRequested{});
  Lost(1);
  EXPECT_EQ(One<OpenRound>(Lost(2)).attempt, Attempt(1));
  EXPECT_FALSE(Has<OpenRound>(Vote(0)));
  EXPECT_EQ(View().phase, Phase::kPaused);
}

TEST_F(EngineTest, APauseBeforeTheFirstRoundHoldsItBack) {
  config_.workers_min = 1;
  Do(PauseRequested{});
  EXPECT_FALSE(Has<OpenRound>(Ready(0)));
  EXPECT_TRUE(Has<OpenRound>(Do(ResumeRequested{})));
}

// ---- digests and the end

TEST_F(EngineTest, TheRunEndsOnceEveryFinalDigestIsIn) {
  config_.main_rounds_max = 2;
  Start(2);
  EXPECT_FALSE(One<CommitRound>(VoteAll({0, 1})).digest_due);
  const Actions last = VoteAll({0, 1});
  EXPECT_TRUE(One<CommitRound>(last).digest_due);
  EXPECT_EQ(One<FinishRun>(last).rounds, Round(2));
  EXPECT_FALSE(Has<OpenRound>(last));
  EXPECT_EQ(View().phase, Phase::kFinishing);
  Do(WorkerDigestIn{Id(0), Inc(0), Round(2), 77});
  Do(MasterDigestIn{Round(2), 77});
  const Actions actions = Do(WorkerDigestIn{Id(1), Inc(1), Round(2), 77});
  EXPECT_TRUE(One<EndRun>(actions).status.ok());
  EXPECT_EQ(*Member(1).final_digest, 77u);
  EXPECT_EQ(Totals().digest_mismatches, 0u);
}

TEST_F(EngineTest, TheServerLingersForSilentWorkersButNotForever) {
  config_.main_rounds_max = 1;
  Start(2);
  VoteAll({0, 1});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 77});
  EXPECT_EQ(*engine().NextTick(), now_ + config_.linger);
  EXPECT_FALSE(Has<EndRun>(DoAfter(config_.linger / 2, Tick{})));
  const Actions actions = DoAfter(config_.linger / 2, Tick{});
  EXPECT_TRUE(One<EndRun>(actions).status.ok());
  EXPECT_THAT(Notices(actions), HasSubstr("w1"));
}

TEST_F(EngineTest, AWorkerThatLeavesAfterItsFinalDigestIsNoLoss) {
  config_.main_rounds_max = 1;
  Start(2);
  VoteAll({0, 1});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 77});
  Lost(0);
  EXPECT_EQ(Totals().losses, 0u);
  Do(MasterDigestIn{Round(1), 77});
  EXPECT_TRUE(Has<EndRun>(Lost(1)));
  EXPECT_EQ(Totals().losses, 1u);
}

TEST_F(EngineTest, AWorkerThatConnectsAfterTheLastRoundAnswersToo) {
  config_.main_rounds_max = 1;
  Start(1);
  Vote(0);
  Ready(5);
  Do(MasterDigestIn{Round(1), 77});
  EXPECT_FALSE(Has<EndRun>(Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 77})));
  EXPECT_TRUE(Has<EndRun>(Do(WorkerDigestIn{Id(5), Inc(5), Round(1), 77})));
}

TEST_F(EngineTest, ADifferingFinalDigestIsNamedAndTheRunIsStillDone) {
  config_.main_rounds_max = 1;
  Start(3);
  VoteAll({0, 1, 2});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 77});
  Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 66});
  const Actions actions = Do(WorkerDigestIn{Id(2), Inc(2), Round(1), 77});
  EXPECT_TRUE(One<EndRun>(actions).status.ok());
  EXPECT_THAT(Notices(actions), HasSubstr("the final replica of w1 differs"));
  EXPECT_EQ(Totals().digest_mismatches, 1u);
}

TEST_F(EngineTest, AMajorityAgainstTheServersFinalReplicaIsDataLoss) {
  config_.main_rounds_max = 1;
  Start(3);
  VoteAll({0, 1, 2});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 66});
  Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 66});
  const EndRun end = One<EndRun>(Do(WorkerDigestIn{Id(2), Inc(2), Round(1), 77}));
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Describe(end.status), HasSubstr("w0, w1"));
}

TEST_F(EngineTest, TwoThatDifferEachInItsOwnWayAreNoMajority) {
  config_.main_rounds_max = 1;
  Start(2);
  VoteAll({0, 1});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 66});
  EXPECT_TRUE(One<EndRun>(Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 55})).status.ok());
  EXPECT_EQ(Totals().digest_mismatches, 2u);
}

TEST_F(EngineTest, AWorkerThatDiffersMidRunIsResynced) {
  config_.digest_every = 2;
  Start(3);
  VoteAll({0, 1, 2});
  EXPECT_TRUE(One<CommitRound>(VoteAll({0, 1, 2})).digest_due);
  Do(WorkerDigestIn{Id(0), Inc(0), Round(2), 66});
  Do(WorkerDigestIn{Id(1), Inc(1), Round(2), 77});
  Do(WorkerDigestIn{Id(2), Inc(2), Round(2), 77});
  const Resync resync = One<Resync>(Do(MasterDigestIn{Round(2), 77}));
  EXPECT_EQ(resync.worker, Id(0));
  EXPECT_EQ(resync.round, Round(2));
  EXPECT_EQ(Totals().digest_mismatches, 1u);
  EXPECT_THAT(Do(MasterDigestIn{Round(2), 77}), IsEmpty());
}

// The master replica may be rounds behind: a worker has then answered of more than one.
TEST_F(EngineTest, AWorkerThatDiffersIsResyncedOnceHoweverManyRoundsItHasAnsweredOf) {
  config_.digest_every = 1;
  config_.main_rounds_max = 3;
  Start(3);
  for (const uint64_t round : {1, 2, 3}) {
    VoteAll({0, 1, 2});
    for (const uint32_t w : {1u, 2u}) Do(WorkerDigestIn{Id(w), Inc(w), Round(round), 77});
    Do(WorkerDigestIn{Id(0), Inc(0), Round(round), 66});
  }
  EXPECT_EQ(One<Resync>(Do(MasterDigestIn{Round(1), 77})).worker, Id(0));
  EXPECT_THAT(Do(MasterDigestIn{Round(2), 77}), IsEmpty());
  EXPECT_FALSE(Has<EndRun>(Do(MasterDigestIn{Round(3), 77})))
      << "its last replica is still to come";
  EXPECT_TRUE(One<EndRun>(Do(WorkerDigestIn{Id(0), Inc(0), Round(3), 77})).status.ok());
  EXPECT_EQ(*Member(0).final_digest, 77u);
  EXPECT_EQ(Totals().digest_mismatches, 1u);
}

TEST_F(EngineTest, NobodyIsResyncedWhileTheMajorityIsUndecided) {
  config_.digest_every = 1;
  Start(3);
  VoteAll({0, 1, 2});
  Do(MasterDigestIn{Round(1), 77});
  EXPECT_FALSE(Has<Resync>(Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 66})));
  const EndRun end = One<EndRun>(Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 66}));
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDataLoss);
}

TEST_F(EngineTest, ALostWorkersAnswerIsNotWaitedFor) {
  config_.digest_every = 1;
  Start(3);
  VoteAll({0, 1, 2});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 66});
  Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 77});
  EXPECT_EQ(One<Resync>(Lost(2)).worker, Id(0));
}

TEST_F(EngineTest, DigestsOfRoundsThatAreNotDueAreStale) {
  config_.digest_every = 2;
  Start(1);
  Vote(0);
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 1});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(9), 1});
  EXPECT_EQ(Totals().stale_messages, 2u);
}

// ---- bounds

TEST_F(EngineTest, AFullRunRefusesOneMoreWorkerAndSaysSo) {
  config_.workers_max = 2;
  Start(2);
  EXPECT_EQ(One<Disconnect>(Ready(2)).status.code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(EngineTest, AWorkerThatIsLongGoneMakesRoomForANewOne) {
  config_.workers_max = 2;
  Start(2);
  Lost(1);
  Vote(0);
  EXPECT_FALSE(Has<Disconnect>(Ready(2)));
  EXPECT_EQ(View().workers.size(), 2u);
  Vote(0);
  EXPECT_EQ(Member(2).share, Share(1));
}

TEST_F(EngineTest, AnEvictedWorkerTakesNobodysPlace) {
  config_.workers_max = 2;
  Start(2);
  Do(EvictRequested{Id(0)});
  Do(EvictRequested{Id(1)});
  EXPECT_FALSE(Has<Disconnect>(Ready(2)));
  EXPECT_FALSE(Has<Disconnect>(Ready(3)));
  EXPECT_EQ(One<Disconnect>(Ready(4)).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(One<Disconnect>(Ready(1)).status.code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(EngineTest, ALostMemberOfTheOpenRoundTakesNobodysPlace) {
  config_.workers_max = 2;
  Start(2);
  Lost(1);
  EXPECT_FALSE(Has<Disconnect>(Ready(2)));
  Vote(0);
  EXPECT_EQ(Seats(), (std::vector<uint32_t>{0, 2}));
}

TEST_F(EngineTest, ConfigurationOutOfRangeIsRefused) {
  const auto create = [this](auto change) {
    EngineConfig config = config_;
    change(config);
    return Engine::Create(config, std::make_unique<SpyRule>(&rule_), EngineState{}, now_)
        .status()
        .code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(create([](EngineConfig&) {}), absl::StatusCode::kOk);
  EXPECT_EQ(create([](EngineConfig& c) { c.chunks = 0; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.coordinates = 0; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.main_rounds_max = 0; }), absl::StatusCode::kOk);
  EXPECT_EQ(create([](EngineConfig& c) { c.workers_max = 1024; }), absl::StatusCode::kOk);
  EXPECT_EQ(create([](EngineConfig& c) { c.workers_max = 0; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.nonfinite_rounds = 0; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.stop_wait = Duration(0); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.growth = 1.9; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.growth = 1001; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.growth = std::nan(""); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.grace_multiple = 1001; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.grace_multiple = -1; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.grace_floor = Duration(-1); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.linger = Duration(0); }), absl::StatusCode::kOk);
  EXPECT_EQ(create([](EngineConfig& c) { c.x0_max_abs = -1; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.workers_min = 0; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.workers_min = c.workers_max + 1; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.workers_max = 1025; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.quorum = c.workers_max + 1; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.observer_after = 0; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.initial = Duration(0); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.grace_multiple = std::nan(""); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.grace_floor = c.deadline.grace_ceiling * 2; }),
            kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.wait_timeout = Duration(0); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.linger = Duration(-1); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.x0_max_abs = std::nan(""); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.step_scale_max = 0; }), kInvalid);
}

TEST_F(EngineTest, OfThoseAwayTheNameThatIsLongestGoneIsForgotten) {
  config_.workers_max = 4;
  Start(4);
  Lost(2);  // in round 0
  VoteAll({0, 1, 3});
  Lost(1);  // in round 1
  VoteAll({0, 3});
  const Actions actions = Ready(4);
  EXPECT_FALSE(Has<Disconnect>(actions));
  EXPECT_EQ(One<ShareFreed>(actions).worker, Id(2));
  std::vector<uint32_t> known;
  for (const MemberView& m : View().workers) known.push_back(m.worker.value());
  EXPECT_THAT(known, ElementsAre(0, 1, 3, 4));
}

TEST_F(EngineTest, AWorkerWithAnOlderSeatThatCameBackAndWentAgainIsNotForgotten) {
  config_.workers_max = 2;
  Start(2);
  Lost(1);
  Ready(1);
  Lost(1);
  Ready(2);
  EXPECT_TRUE(Has<CommitRound>(Vote(0)));
  EXPECT_EQ(Member(1).abstentions, 1u);
}

TEST_F(EngineTest, AThousandWorkersVoteInOneRound) {
  std::vector<uint32_t> all;
  for (uint32_t w = 0; w < 1000; ++w) all.push_back(w);
  Start(1000);
  EXPECT_EQ(last_open_.quorum, 500u);
  EXPECT_EQ(last_open_.seats.back().share, Share(999));
  const CommitRound commit = One<CommitRound>(VoteAll(all));
  EXPECT_EQ(Counted(commit), (std::vector<uint32_t>{1000, 1000}));
  EXPECT_EQ(commit.voters.size(), 1000u);
}

TEST_F(EngineTest, WhatChangesTheStateBetweenCommitsLeavesAsActions) {
  const Actions opened = Ready(0);
  EXPECT_EQ(One<ShareGiven>(opened).share, Share(0));
  EXPECT_TRUE(One<PauseSet>(Do(PauseRequested{})).paused);
  EXPECT_FALSE(Has<PauseSet>(Do(PauseRequested{})));
  EXPECT_FALSE(One<PauseSet>(Do(ResumeRequested{})).paused);
  EXPECT_FALSE(Has<PauseSet>(Do(ResumeRequested{})));
  const Actions evicted = Do(EvictRequested{Id(0)});
  EXPECT_EQ(One<EvictionMade>(evicted).worker, Id(0));
  EXPECT_EQ(One<ShareFreed>(evicted).share, Share(0));
  EXPECT_FALSE(Has<EvictionMade>(Do(EvictRequested{Id(0)})));
}

TEST_F(EngineTest, ALyingHalfEndsNoRunWhileHonestAnswersAreOutstanding) {
  config_.digest_every = 1;
  Start(4);
  VoteAll({0, 1, 2, 3});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 66});
  Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 66});
  Do(WorkerDigestIn{Id(2), Inc(2), Round(1), 77});
  // The next digest is due before the fourth answer came.
  const Actions actions = VoteAll({0, 1, 2, 3});
  EXPECT_FALSE(Has<EndRun>(actions));
  const std::vector<Resync> resyncs = All<Resync>(actions);
  ASSERT_EQ(resyncs.size(), 2u);
  EXPECT_EQ(resyncs[0].worker, Id(0));
  EXPECT_EQ(resyncs[1].worker, Id(1));
}

TEST_F(EngineTest, LiarsWhoStayWhenHonestWorkersGoAreNoMajority) {
  config_.digest_every = 1;
  Start(4);
  VoteAll({0, 1, 2, 3});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 66});
  Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 66});
  Lost(2);
  EXPECT_EQ(All<Resync>(Lost(3)).size(), 2u);
}

}  // namespace
}  // namespace signvote::round
