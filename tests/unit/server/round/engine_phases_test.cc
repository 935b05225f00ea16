// Between two rounds, rounds without a ballot, and the stop in every phase, one sentence each.
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

// ---- tallies

TEST_F(EngineTest, ARoundIsCommittedOnlyOnceEveryChunkIsTallied) {
  hold_tallies_ = true;
  Start(2);
  const Actions voted = VoteAll({0, 1});
  EXPECT_EQ(All<CloseChunk>(voted).size(), 2u);
  EXPECT_FALSE(Has<CommitRound>(voted));
  ASSERT_EQ(held_.size(), 2u);
  EXPECT_FALSE(Has<CommitRound>(Do(held_[1])));
  EXPECT_THAT(Do(held_[1]), IsEmpty());  // a second one of the same chunk
  EXPECT_EQ(Totals().tallies_dropped, 1u);
  held_[0].counted = 1;
  const CommitRound commit = One<CommitRound>(Do(held_[0]));
  EXPECT_EQ(commit.chunks, (std::vector<ChunkCount>{{1, 100}, {2, 101}}));
}

TEST_F(EngineTest, ATallyOfAnOlderAttemptIsDropped) {
  hold_tallies_ = true;
  Start(4);
  Chunk(0, 0);
  Chunk(1, 0);
  Chunk(2, 0);
  ASSERT_EQ(All<CloseChunk>(Chunk(3, 0)).size(), 1u);
  const ChunkTallied old = held_.front();
  Lost(1);
  Lost(2);
  ASSERT_TRUE(Has<OpenRound>(Lost(3)));
  EXPECT_THAT(Do(old), IsEmpty());
  EXPECT_THAT(Do(ChunkTallied{Round(0), Attempt(1), ChunkIndex(0), 1, 1}),
              IsEmpty());  // not closed
  EXPECT_THAT(Do(ChunkTallied{Round(0), Attempt(1), ChunkIndex(9), 1, 1}), IsEmpty());
  EXPECT_THAT(Do(ChunkTallied{Round(1), Attempt(1), ChunkIndex(0), 1, 1}), IsEmpty());
  EXPECT_EQ(Totals().tallies_dropped, 4u);
  held_.clear();
  VoteAll({0});
  ASSERT_EQ(held_.size(), 2u);
  Do(held_[0]);
  EXPECT_EQ(Counted(One<CommitRound>(Do(held_[1]))), (std::vector<uint32_t>{1, 1}));
}

TEST_F(EngineTest, NobodyIsSilentWhileTheTallyIsOutAndNoTickSpins) {
  hold_tallies_ = true;
  Start(2);
  VoteAll({0, 1});
  const Actions deadline = Sleep();
  EXPECT_EQ(Notices(deadline), "");
  EXPECT_GT(*engine().NextTick(), now_);
  EXPECT_EQ(*engine().NextTick(), Time{1000} + config_.wait_timeout);
  const EndRun end = One<EndRun>(Sleep());
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Describe(end.status), HasSubstr("for the tally in round 0"));
}

// ---- durability and room

TEST_F(EngineTest, TheNextRoundOpensOnlyWhenTheCommitIsDurable) {
  hold_durable_ = true;
  Start(2);
  const Actions voted = VoteAll({0, 1});
  EXPECT_TRUE(Has<CommitRound>(voted));
  EXPECT_FALSE(Has<OpenRound>(voted));
  EXPECT_EQ(View().phase, Phase::kCommitting);
  EXPECT_FALSE(engine().NextTick().has_value());
  EXPECT_THAT(Do(CommitDurable{Round(1)}), IsEmpty());
  EXPECT_EQ(Totals().stale_messages, 1u);
  EXPECT_THAT(DoAfter(Duration(seconds(5)), Tick{}), IsEmpty());
  now_ = now_ + Duration(seconds(5));
  EXPECT_EQ(One<OpenRound>(Do(CommitDurable{Round(0)})).round, Round(1));
  EXPECT_THAT(Do(CommitDurable{Round(0)}), IsEmpty());
  EXPECT_EQ(Totals().stale_messages, 2u);
  // The deadline counts from the round's opening, not from the commit before it.
  EXPECT_EQ(ToDeadline(), *last_open_.deadline);
}

TEST_F(EngineTest, WorkersThatComeAndGoWhileACommitIsNotDurableAreSeatedAfterwards) {
  hold_durable_ = true;
  Start(2);
  VoteAll({0, 1});
  EXPECT_FALSE(Has<OpenRound>(Ready(2)));
  EXPECT_FALSE(Has<OpenRound>(Lost(1)));
  Do(CommitDurable{Round(0)});
  EXPECT_THAT(Seats(), ElementsAre(0, 2));
}

TEST_F(EngineTest, WithoutRoomInThePipelineTheServerWaitsForItsOwnApplier) {
  hold_durable_ = true;
  Start(2);
  VoteAll({0, 1});
  Do(ProposalRoom{false});
  const Actions durable = Do(CommitDurable{Round(0)});
  EXPECT_FALSE(Has<OpenRound>(durable));
  EXPECT_THAT(Notices(durable), HasSubstr("round 1 waits for the server's own applier"));
  EXPECT_EQ(View().phase, Phase::kWaitingForRoom);
  // Nobody is blamed, and no time runs against the workers.
  EXPECT_FALSE(engine().NextTick().has_value());
  EXPECT_THAT(DoAfter(config_.wait_timeout * 2, Tick{}), IsEmpty());
  Ready(2);
  EXPECT_EQ(One<OpenRound>(Do(ProposalRoom{true})).seats.size(), 3u);
}

TEST_F(EngineTest, AnApplierThatIsAlwaysLateIsNamedOnce) {
  hold_durable_ = true;
  Start(1);
  std::string said;
  for (uint64_t t = 0; t < 4; ++t) {
    Vote(0);
    Do(ProposalRoom{false});
    said += Notices(Do(CommitDurable{Round(t)}));
    said += Notices(Do(ProposalRoom{true}));
  }
  EXPECT_EQ(said.find("own applier"), said.rfind("own applier"));
  Vote(0);
  EXPECT_THAT(Notices(Do(CommitDurable{Round(4)})), HasSubstr("keeps up again"));
  Vote(0);
  EXPECT_EQ(Notices(Do(CommitDurable{Round(5)})), "");
}

TEST_F(EngineTest, ARoundThatIsOpenHasItsPlace) {
  Start(1);
  Do(ProposalRoom{false});
  EXPECT_TRUE(Has<CommitRound>(Vote(0)));
  EXPECT_EQ(View().phase, Phase::kWaitingForRoom);
}

TEST_F(EngineTest, APauseWhileThereIsNoRoomOutlastsIt) {
  Start(1);
  Do(ProposalRoom{false});
  Vote(0);
  Do(PauseRequested{});
  EXPECT_EQ(View().phase, Phase::kPaused);
  EXPECT_FALSE(Has<OpenRound>(Do(ProposalRoom{true})));
  EXPECT_TRUE(Has<OpenRound>(Do(ResumeRequested{})));
}

// ---- rounds without a ballot

TEST_F(EngineTest, OneNonFiniteGradientOfTheOnlyWorkerEndsNoRun) {
  Start(1);
  const Actions first = Abstain(0, AbstainReason::kNonFiniteGradient);
  EXPECT_FALSE(Has<EndRun>(first));
  EXPECT_FALSE(Has<CommitRound>(first));
  const OpenRound again = One<OpenRound>(first);
  EXPECT_EQ(again.attempt, Attempt(1));
  EXPECT_TRUE(again.reopening);
  EXPECT_EQ(again.data_step, DataStep(0));

  const Actions second = Abstain(0, AbstainReason::kNonFiniteGradient);
  const CommitRound none = One<CommitRound>(second);
  EXPECT_EQ(none.kind, CommitKind::kNone);
  EXPECT_EQ(none.round, Round(0));
  EXPECT_EQ(none.attempt, Attempt(1));
  EXPECT_EQ(none.data_step, DataStep(0));
  EXPECT_EQ(none.next_data_step, DataStep(1));
  EXPECT_FALSE(none.main_round);
  EXPECT_EQ(none.main_rounds, 0u);
  EXPECT_THAT(none.chunks, IsEmpty());
  EXPECT_THAT(none.voters, IsEmpty());
  EXPECT_EQ(none.abstentions, 1u);
  EXPECT_EQ(none.wait, Duration(0));
  EXPECT_FALSE(Has<OpenRound>(second));
  EXPECT_EQ(View().phase, Phase::kBackingOff);
  EXPECT_THAT(Notices(second), HasSubstr("round 0 closes without a step: no finite gradient"));
  EXPECT_EQ(Totals().rounds_without_step, 1u);

  EXPECT_EQ(*engine().NextTick(), now_ + Duration(seconds(1)));
  EXPECT_FALSE(Has<OpenRound>(DoAfter(milliseconds(999), Tick{})));
  const OpenRound next = One<OpenRound>(DoAfter(milliseconds(1), Tick{}));
  EXPECT_EQ(next.round, Round(1));
  EXPECT_EQ(next.attempt, Attempt(0));
  EXPECT_EQ(next.data_step, DataStep(1));
  const CommitRound step = One<CommitRound>(Vote(0));
  EXPECT_EQ(step.kind, CommitKind::kStep);
  EXPECT_EQ(step.main_rounds, 1u);
}

TEST_F(EngineTest, OneAbstentionAndOneDeathEndNoRunWhileOthersAreReady) {
  Start(2);
  Ready(2);
  Abstain(0, AbstainReason::kNonFiniteLoss);
  const Actions actions = Lost(1);
  EXPECT_FALSE(Has<EndRun>(actions));
  EXPECT_EQ(One<OpenRound>(actions).attempt, Attempt(1));
  EXPECT_THAT(Seats(), ElementsAre(0, 2));
  Abstain(0, AbstainReason::kNonFiniteLoss);
  EXPECT_EQ(Counted(One<CommitRound>(Vote(2))), (std::vector<uint32_t>{1, 1}));
}

TEST_F(EngineTest, OneAbstentionAndOneHungMemberEndNoRunWhileOthersAreReady) {
  Start(2);
  Ready(2);
  Abstain(0, AbstainReason::kOther);
  const Actions actions = Sleep();  // the deadline
  EXPECT_EQ(One<OpenRound>(actions).attempt, Attempt(1));
  EXPECT_THAT(Seats(), ElementsAre(0, 1, 2));
  Abstain(0, AbstainReason::kOther);
  Vote(2);
  EXPECT_EQ(Counted(One<CommitRound>(Sleep())), (std::vector<uint32_t>{1, 1}));
}

TEST_F(EngineTest, AnAbstentionBesideAHungMemberClosesWithoutAStepAtTheDeadline) {
  Start(2);
  Abstain(0, AbstainReason::kOther);
  EXPECT_TRUE(Has<OpenRound>(Sleep()));
  Abstain(0, AbstainReason::kOther);
  EXPECT_EQ(One<CommitRound>(Sleep()).kind, CommitKind::kNone);
}

TEST_F(EngineTest, ChunksThatWereVotedAreDroppedWithTheRound) {
  Start(2);
  for (int attempt = 0; attempt < 2; ++attempt) {
    Chunk(0, 0);
    Abstain(0, AbstainReason::kNonFiniteGradient);
    Chunk(1, 0);
    const Actions actions = Abstain(1, AbstainReason::kNonFiniteGradient);
    if (attempt == 0) {
      EXPECT_TRUE(Has<OpenRound>(actions));
    } else {
      EXPECT_THAT(One<CommitRound>(actions).chunks, IsEmpty());
    }
  }
  EXPECT_EQ(Member(0).ballots, 0u);
  EXPECT_EQ(Member(0).abstentions, 1u);
}

TEST_F(EngineTest, ThoseWhoBecomeReadyGetTheirChanceBeforeARoundClosesWithoutAStep) {
  Start(1);
  Abstain(0);
  Ready(1);
  EXPECT_EQ(One<OpenRound>(Abstain(0)).attempt, Attempt(2));
  EXPECT_THAT(Seats(), ElementsAre(0, 1));
  Ready(2);
  Abstain(0);
  Abstain(1);
  ASSERT_EQ(attempt_, Attempt(3));
  Ready(3);  // not for ever
  Abstain(0);
  Abstain(1);
  EXPECT_EQ(One<CommitRound>(Abstain(2)).kind, CommitKind::kNone);
}

TEST_F(EngineTest, FiveRoundsInARowWithoutAnyFiniteLossEndTheRunAsDiverged) {
  Start(2);
  for (int t = 0; t < 5; ++t) {
    for (const uint32_t w : {0u, 1u, 0u}) EXPECT_FALSE(Has<EndRun>(Abstain(w)));
    const Actions actions = Abstain(1);
    EXPECT_EQ(One<CommitRound>(actions).kind, CommitKind::kNone);
    EXPECT_THAT(One<CommitRound>(actions).reason, HasSubstr("no finite loss"));
    EXPECT_EQ(Has<EndRun>(actions), t == 4);
    EXPECT_EQ(Has<OpenRound>(actions), t < 4);  // at once, without a back-off
    if (t == 4) {
      EXPECT_EQ(One<EndRun>(actions).status.code(), absl::StatusCode::kAborted);
      EXPECT_THAT(Describe(One<EndRun>(actions).status), HasSubstr("diverged"));
    }
  }
}

TEST_F(EngineTest, OneOtherReasonOrOneStepBreaksTheRowOfNonFiniteLosses) {
  config_.nonfinite_rounds = 2;
  Start(2);
  const auto both = [this](AbstainReason a, AbstainReason b) {
    Actions last;
    for (int attempt = 0; attempt < 2; ++attempt) {
      Abstain(0, a);
      last = Abstain(1, b);
    }
    return last;
  };
  constexpr auto kLoss = AbstainReason::kNonFiniteLoss;
  both(kLoss, kLoss);
  EXPECT_FALSE(Has<EndRun>(both(kLoss, AbstainReason::kNonFiniteGradient)));
  Sleep();
  EXPECT_FALSE(Has<EndRun>(both(kLoss, kLoss)));
  VoteAll({0, 1});
  EXPECT_FALSE(Has<EndRun>(both(kLoss, kLoss)));
  EXPECT_TRUE(Has<EndRun>(both(kLoss, kLoss)));
}

TEST_F(EngineTest, ASilentMemberMayHaveAFiniteLossAndBreaksTheRowToo) {
  config_.nonfinite_rounds = 2;
  config_.quorum = 1;
  Start(2);
  for (int t = 0; t < 4; ++t) {
    Actions actions = Abstain(0);  // the other one says nothing by the deadline
    for (int i = 0; i < 4 && !Has<CommitRound>(actions); ++i) {
      actions = Sleep();
      if (!Has<CommitRound>(actions)) actions = Abstain(0);
    }
    ASSERT_TRUE(Has<CommitRound>(actions)) << t;
    EXPECT_FALSE(Has<EndRun>(actions)) << t;
    EXPECT_FALSE(rule_.nonfinite) << t;
    Sleep();
  }
}

TEST_F(EngineTest, NonFiniteGradientsAtEveryMemberAreToldToTheRule) {
  Start(2);
  for (int attempt = 0; attempt < 2; ++attempt) {
    Abstain(0, AbstainReason::kNonFiniteGradient);
    Abstain(1, AbstainReason::kNonFiniteLoss);
  }
  EXPECT_TRUE(rule_.nonfinite);
}

TEST_F(EngineTest, ARuleThatGivesUpEndsTheRunOnceItsLastDecisionIsDurable) {
  Start(1);
  rule_.failure = absl::AbortedError("no stepsize lowers the loss");
  rule_.next = {.kind = CommitKind::kRewind, .main_round = false};
  const Actions actions = Vote(0);
  EXPECT_EQ(One<CommitRound>(actions).kind, CommitKind::kRewind);
  EXPECT_EQ(One<EndRun>(actions).status, rule_.failure);
  EXPECT_FALSE(Has<OpenRound>(actions));
}

TEST_F(EngineTest, TheBackOffDoublesUpToThirtySecondsAndAStepEndsIt) {
  Start(1);
  const auto without_step = [this] {
    Abstain(0, AbstainReason::kOther);
    Abstain(0, AbstainReason::kOther);
    return *engine().NextTick() - now_;
  };
  for (const int s : {1, 2, 4, 8, 16, 30, 30}) {
    EXPECT_EQ(without_step(), Duration(seconds(s)));
    ASSERT_TRUE(Has<OpenRound>(Sleep()));
  }
  Vote(0);
  EXPECT_EQ(without_step(), Duration(seconds(1)));
}

TEST_F(EngineTest, NoStepForTheWaitTimeoutEndsTheRun) {
  config_.wait_timeout = Duration(seconds(20));
  Start(1);
  Vote(0);
  now_ = now_ + Duration(seconds(5));
  Actions actions;
  for (int t = 0; t < 20 && !Has<EndRun>(actions); ++t) {
    Abstain(0, AbstainReason::kOther);
    Abstain(0, AbstainReason::kOther);
    actions = Sleep();
  }
  const EndRun end = One<EndRun>(actions);
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Describe(end.status), HasSubstr("no step for 20 s"));
  EXPECT_EQ(now_, Time{1000} + Duration(seconds(20)));
}

TEST_F(EngineTest, AnOverdueQuorumIsAskedOfThoseWhoBecameReady) {
  Start(3);
  Abstain(0, AbstainReason::kOther);
  const Actions deadline = Sleep();
  EXPECT_THAT(Notices(deadline), HasSubstr("silent: w1, w2"));
  const OpenRound open = One<OpenRound>(Ready(3));
  EXPECT_EQ(open.attempt, Attempt(1));
  EXPECT_THAT(Seats(), ElementsAre(0, 1, 2, 3));
}

TEST_F(EngineTest, ACommitOfKindNoneKeepsTheStepsizeWhateverTheRuleSays) {
  Start(1);
  EXPECT_EQ(One<CommitRound>(Vote(0)).gamma, 0.5f);
  rule_.without_ballot =
      StepsizeDecision{.kind = CommitKind::kNone, .gamma = 9, .rho = 2, .reason = "trial"};
  Abstain(0);
  const CommitRound none = One<CommitRound>(Abstain(0));
  EXPECT_EQ(none.gamma, 0.5f);
  EXPECT_EQ(none.rho, 1.0f);
  EXPECT_EQ(none.reason, "no finite loss; trial");
  EXPECT_EQ(rule_.gammas.back(), 0.5f);
}

// ---- the end that the rule, or the number of main rounds, decides

TEST_F(EngineTest, OnlyMainRoundsCountTowardsTheEnd) {
  config_.main_rounds_max = 2;
  Start(1);
  rule_.next.main_round = false;
  for (int t = 0; t < 3; ++t) EXPECT_FALSE(One<CommitRound>(Vote(0)).run_done);
  rule_.next = {.kind = CommitKind::kRewind, .gamma = 0.5f, .next_data_step = DataStep(1)};
  const CommitRound rewind = One<CommitRound>(Vote(0));
  EXPECT_FALSE(rewind.main_round);
  EXPECT_THAT(rewind.chunks, IsEmpty());
  EXPECT_EQ(last_open_.data_step, DataStep(1));
  rule_.next = {.gamma = 0.5f};
  EXPECT_FALSE(One<CommitRound>(Vote(0)).run_done);
  const Actions last = Vote(0);
  EXPECT_TRUE(One<CommitRound>(last).run_done);
  EXPECT_TRUE(One<CommitRound>(last).digest_due);
  EXPECT_EQ(One<FinishRun>(last).rounds, Round(6));
  EXPECT_EQ(View().main_rounds, 2u);
}

TEST_F(EngineTest, ARunOfUnknownLengthEndsWhenTheRuleSaysSo) {
  config_.main_rounds_max = 0;
  Start(1);
  for (int t = 0; t < 50; ++t) ASSERT_FALSE(One<CommitRound>(Vote(0)).run_done);
  rule_.next.run_done = true;
  EXPECT_TRUE(Has<FinishRun>(Vote(0)));
}

// ---- waiting for workers

TEST_F(EngineTest, WaitingForWorkersIsRenewedByThoseWhoArriveAndBecomeReady) {
  config_.workers_min = 3;
  Ready(0);
  DoAfter(config_.wait_timeout / 2, WorkerArriving{Id(1)});
  EXPECT_EQ(*engine().NextTick(), now_ + config_.wait_timeout);
  now_ = now_ + config_.wait_timeout / 2;
  Ready(1);
  EXPECT_EQ(*engine().NextTick(), now_ + config_.wait_timeout);
  EXPECT_THAT(DoAfter(config_.wait_timeout - Duration(1), Tick{}), IsEmpty());
  EXPECT_TRUE(Has<EndRun>(DoAfter(Duration(1), Tick{})));
}

// ---- the stop, phase by phase

TEST_F(EngineTest, AStopLetsTheOpenRoundCompleteAndThenEndsTheRun) {
  Start(2);
  Vote(0);
  EXPECT_FALSE(Has<EndRun>(Do(StopRequestedEvent{})));
  const Actions actions = Vote(1);
  EXPECT_TRUE(Has<CommitRound>(actions));
  const EndRun end = One<EndRun>(actions);
  EXPECT_EQ(end.status.code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(Describe(end.status), HasSubstr("stopped by the operator after 1 rounds"));
}

TEST_F(EngineTest, AStopEndsTheRunAtTheDeadlineOrAfterItsOwnWait) {
  Start(3);
  now_ = now_ + Duration(seconds(55));
  Do(StopRequestedEvent{});
  EXPECT_EQ(*engine().NextTick(), now_ + Duration(seconds(5)));
  EXPECT_EQ(One<EndRun>(Sleep()).status.code(), absl::StatusCode::kCancelled);
}

TEST_F(EngineTest, AStopWithDeadlinesOffIsBoundedToo) {
  config_.deadline.enabled = false;
  Start(1);
  Do(StopRequestedEvent{});
  EXPECT_EQ(*engine().NextTick(), now_ + config_.stop_wait);
  EXPECT_EQ(One<EndRun>(Sleep()).status.code(), absl::StatusCode::kCancelled);
}

TEST_F(EngineTest, AStopWithChunksClosedAndScalarsMissingUnderDeadlineOffCommitsAndEnds) {
  config_.deadline.enabled = false;
  Start(2);
  Vote(0);
  Chunk(1, 0);
  Chunk(1, 1);
  EXPECT_FALSE(Has<EndRun>(Do(StopRequestedEvent{})));
  int ticks = 0;
  Actions actions;
  while (!Has<EndRun>(actions) && ticks < 10) {
    ASSERT_GT(*engine().NextTick(), now_);
    actions = Sleep();
    ++ticks;
  }
  EXPECT_EQ(ticks, 1);
  EXPECT_TRUE(Has<CommitRound>(actions));
  EXPECT_LE(now_ - Time{1000}, config_.stop_wait);
}

TEST_F(EngineTest, AStopThatTakesTheQuorumWaitsForTheTallyButNotForLong) {
  config_.deadline.enabled = false;
  hold_tallies_ = true;
  Start(3);
  VoteAll({0, 1});
  Do(StopRequestedEvent{});
  EXPECT_EQ(All<CloseChunk>(Sleep()).size(), 2u);
  EXPECT_GT(*engine().NextTick(), now_);
  Do(held_[0]);
  const Actions committed = Do(held_[1]);
  EXPECT_TRUE(Has<CommitRound>(committed));
  EXPECT_TRUE(Has<EndRun>(committed));
}

TEST_F(EngineTest, TheTallyTheCommitAndTheLastDigestsOfAStopShareOneTime) {
  config_.main_rounds_max = 1;
  config_.deadline.enabled = false;
  hold_tallies_ = hold_durable_ = true;
  Start(3);
  VoteAll({0, 1});
  const Time end = now_ + config_.stop_wait + Duration(seconds(2));
  Do(StopRequestedEvent{});
  EXPECT_EQ(All<CloseChunk>(Sleep()).size(), 2u);
  EXPECT_EQ(*engine().NextTick(), end);
  now_ = now_ + Duration(milliseconds(1900));
  Do(held_[0]);
  EXPECT_TRUE(Has<CommitRound>(Do(held_[1])));
  EXPECT_EQ(*engine().NextTick(), end);
  EXPECT_TRUE(Has<FinishRun>(Do(CommitDurable{Round(0)})));
  EXPECT_EQ(*engine().NextTick(), end);
  EXPECT_TRUE(Has<EndRun>(Sleep()));
}

TEST_F(EngineTest, AStopEndsEvenIfTheTallyNeverComes) {
  hold_tallies_ = true;
  Start(1);
  Vote(0);
  Do(StopRequestedEvent{});
  EXPECT_TRUE(Has<EndRun>(Sleep()));
  EXPECT_EQ(now_, Time{1000} + config_.stop_wait);
}

TEST_F(EngineTest, AStopWhileCommittingWaitsForDurabilityButNotForLong) {
  hold_durable_ = true;
  Start(1);
  Vote(0);
  EXPECT_FALSE(Has<EndRun>(Do(StopRequestedEvent{})));
  EXPECT_FALSE(Has<EndRun>(DoAfter(seconds(1), Tick{})));
  EXPECT_EQ(*engine().NextTick(), now_ + Duration(seconds(1)));
  EXPECT_TRUE(Has<EndRun>(Sleep()));
}

TEST_F(EngineTest, AStopWhileCommittingEndsWithTheDurableCommit) {
  hold_durable_ = true;
  Start(1);
  Vote(0);
  Do(StopRequestedEvent{});
  const Actions actions = Do(CommitDurable{Round(0)});
  EXPECT_FALSE(Has<OpenRound>(actions));
  EXPECT_TRUE(Has<EndRun>(actions));
}

TEST_F(EngineTest, AStopEndsTheRunInsteadOfAReopening) {
  Start(4);
  Do(StopRequestedEvent{});
  Lost(1);
  Lost(2);
  const Actions actions = Lost(3);
  EXPECT_FALSE(Has<OpenRound>(actions));
  EXPECT_EQ(One<EndRun>(actions).status.code(), absl::StatusCode::kCancelled);
}

TEST_F(EngineTest, AStopWhileAReopenedRoundWaitsForWorkersEndsTheRunAtOnce) {
  Start(1);
  Lost(0);
  ASSERT_EQ(View().phase, Phase::kWaitingForWorkers);
  EXPECT_TRUE(Has<EndRun>(Do(StopRequestedEvent{})));
}

TEST_F(EngineTest, AStopWhileWaitingPausedWithoutRoomOrBackingOffEndsTheRunAtOnce) {
  config_.workers_min = 2;
  Ready(0);
  EXPECT_EQ(One<EndRun>(Do(StopRequestedEvent{})).status.code(), absl::StatusCode::kCancelled);

  const auto restart = [this] {
    engine_ = nullptr;
    incarnations_.clear();
    Start(1);
  };
  restart();
  Do(PauseRequested{});
  Vote(0);
  EXPECT_TRUE(Has<EndRun>(Do(StopRequestedEvent{})));
  restart();
  Do(ProposalRoom{false});
  Vote(0);
  EXPECT_TRUE(Has<EndRun>(Do(StopRequestedEvent{})));
  restart();
  Abstain(0, AbstainReason::kOther);
  Abstain(0, AbstainReason::kOther);
  ASSERT_EQ(View().phase, Phase::kBackingOff);
  EXPECT_TRUE(Has<EndRun>(Do(StopRequestedEvent{})));
  EXPECT_THAT(Do(StopRequestedEvent{}), IsEmpty());
}

TEST_F(EngineTest, AStopWhileFinishingShortensTheLinger) {
  config_.main_rounds_max = 1;
  Start(1);
  Vote(0);
  EXPECT_FALSE(Has<EndRun>(Do(StopRequestedEvent{})));
  EXPECT_EQ(*engine().NextTick(), now_ + config_.stop_wait);
  const Actions actions = Sleep();
  EXPECT_TRUE(One<EndRun>(actions).status.ok());
}

}  // namespace
}  // namespace signvote::round
