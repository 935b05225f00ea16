// Rounds with local steps: how long they are waited for, what scalars say of lengths, silent rounds.

#include <gmock/gmock.h>

#include "tests/unit/server/round/engine_fixture.h"

namespace signvote::round {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class EngineLocalTest : public EngineTest {
 protected:
  EngineLocalTest() {
    config_.step_scales = {1, 0.5f};
    rule_.local = {.steps = 16, .eta_first = 0.01f, .eta_last = 0.01f};
  }
  WorkerScalars Lengths(std::vector<float> lengths, uint32_t steps = 0) const {
    WorkerScalars s = SomeScalars();
    s.displacement_mean = std::move(lengths);
    s.local_steps = steps;
    return s;
  }
  // The whole ballot of w, `compute` of it for its minibatches.
  Actions VoteLocal(uint32_t w, const WorkerScalars& scalars, Duration compute) {
    const Round round = round_;
    const Attempt attempt = attempt_;
    Actions all;
    for (uint32_t k = 0; k < config_.chunks; ++k) {
      const Actions more = Do(BallotChunkIn{Id(w), Inc(w), round, attempt, ChunkIndex(k)});
      all.insert(all.end(), more.begin(), more.end());
    }
    const Actions more = Do(ScalarsIn{Id(w), Inc(w), round, attempt, scalars, compute});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  // A round in which all of these take a second a minibatch, and two to send.
  void Round16(const std::vector<uint32_t>& workers) {
    now_ = now_ + seconds(rule_.local.steps) + seconds(2);
    for (const uint32_t w : workers)
      VoteLocal(w, Lengths({.01f, .01f}), seconds(rule_.local.steps));
  }
};

TEST_F(EngineLocalTest, ARoundOpensWithItsStepsAndItsCommitSaysHowFarTheyWent) {
  Start(2);
  EXPECT_EQ(last_open_.local, rule_.local);
  EXPECT_EQ(last_open_.data_step, DataStep(0));
  VoteLocal(0, Lengths({.02f, .5f}), {});
  const CommitRound commit = One<CommitRound>(VoteLocal(1, Lengths({.04f, .02f}), {}));
  EXPECT_EQ(commit.kind, CommitKind::kStep);
  EXPECT_EQ(commit.local.plan, rule_.local);
  ASSERT_EQ(commit.local.scales.size(), 2u);
  EXPECT_FLOAT_EQ(commit.local.scales[0], .03f);
  EXPECT_FLOAT_EQ(commit.local.scales[1], .1f)
      << ".05, at most half of sixteen steps of .01, in units of the step scale";
  EXPECT_FLOAT_EQ(commit.local.decay_step, .16f);
  EXPECT_EQ(commit.data_step, DataStep(0));
  EXPECT_EQ(commit.next_data_step, DataStep(16));
  EXPECT_EQ(commit.main_rounds, 1u);
  EXPECT_EQ(commit.local.minibatches, 16u);
  EXPECT_EQ(rule_.local_shown, rule_.local);
  EXPECT_EQ(last_open_.data_step, DataStep(16));
  EXPECT_EQ(View().minibatches, 16u);
}

TEST_F(EngineLocalTest, AVoteOnOneMinibatchHasNoLengthsAndMovesOnByOne) {
  rule_.local = {};
  Start(1);
  const CommitRound commit = One<CommitRound>(Vote(0));
  EXPECT_THAT(commit.local.scales, IsEmpty());
  EXPECT_EQ(commit.next_data_step, DataStep(1));
  EXPECT_EQ(commit.local.minibatches, 1u);
}

TEST_F(EngineLocalTest, ARoundOfWhichNobodySaysHowFarItWentClosesWithoutAStep) {
  Start(2);
  VoteLocal(0, Lengths({.02f}), {});
  const Actions actions = VoteLocal(1, Lengths({.02f, -1.0f}), {});
  const CommitRound commit = One<CommitRound>(actions);
  EXPECT_EQ(commit.kind, CommitKind::kNone);
  EXPECT_THAT(commit.reason, HasSubstr("no worker says how far its minibatches went"));
  EXPECT_THAT(commit.chunks, IsEmpty());
  EXPECT_THAT(commit.local.scales, IsEmpty());
  EXPECT_THAT(commit.voters, IsEmpty());
  EXPECT_FALSE(commit.main_round);
  EXPECT_EQ(commit.next_data_step, DataStep(16)) << "those minibatches are over";
  EXPECT_EQ(Totals().scalars_refused, 1u);
  EXPECT_EQ(Totals().rounds_without_step, 1u);
  EXPECT_EQ(View().phase, Phase::kBackingOff);
}

TEST_F(EngineLocalTest, ALiarsScalarsAreRefusedAndItsBallotCounts) {
  Start(2);
  VoteLocal(0, Lengths({.02f, .02f}), {});
  const CommitRound commit = One<CommitRound>(VoteLocal(1, Lengths({.02f, -1.0f}), {}));
  EXPECT_EQ(commit.kind, CommitKind::kStep);
  EXPECT_THAT(Counted(commit), ElementsAre(2u, 2u));
  EXPECT_EQ(commit.local.scales, (std::vector<float>{.02f, .04f})) << "the second in halves";
}

TEST_F(EngineLocalTest, MoreMinibatchesThanWereAskedForAreRefused) {
  Start(2);
  VoteLocal(0, Lengths({.02f, .02f}, 4), {});
  const CommitRound commit = One<CommitRound>(VoteLocal(1, Lengths({.1f, .1f}, 17), {}));
  EXPECT_EQ(commit.local.scales, (std::vector<float>{.02f, .04f})) << "the second in halves";
  EXPECT_EQ(Totals().scalars_refused, 1u);
}

TEST_F(EngineLocalTest, TheDeadlineGrowsWithTheMinibatchesAndSendingDoesNot) {
  Start(2);
  EXPECT_EQ(ToDeadline(), 16 * config_.deadline.initial) << "while nothing is known";
  for (int i = 0; i < 3; ++i) Round16({0, 1});
  // 16 s of computing and 2 s of sending, and a quarter for grace.
  EXPECT_EQ(ToDeadline(), seconds(18) + milliseconds(4500));
  rule_.local.steps = 64;
  Round16({0, 1});  // still of 16: the next one opens with 64
  EXPECT_EQ(ToDeadline(), seconds(66) + milliseconds(16500));
  EXPECT_EQ(*last_open_.deadline, ToDeadline());
}

TEST_F(EngineLocalTest, EachWorkerStopsInTimeToSendWhatItHas) {
  Start(2);
  EXPECT_EQ(last_open_.seats[0].steps_until, 16 * config_.deadline.initial);
  for (int i = 0; i < 3; ++i) Round16({0, 1});
  // Its own two seconds of sending, and one for the minibatch that it may just have begun.
  EXPECT_EQ(last_open_.seats[0].steps_until, *last_open_.deadline - seconds(3));
  rule_.local = {};
  Round16({0, 1});
  EXPECT_EQ(last_open_.seats[0].steps_until, std::nullopt) << "a vote takes what it takes";
}

TEST_F(EngineLocalTest, WithoutDeadlinesEverybodyTakesAllOfThem) {
  config_.deadline.enabled = false;
  Start(2);
  EXPECT_EQ(last_open_.seats[0].steps_until, std::nullopt);
}

TEST_F(EngineLocalTest, AWorkerThatTookFewerStepsIsKnownByItsOwnSpeed) {
  config_.deadline.growth = 1000;
  Start(2);
  for (int i = 0; i < 3; ++i) {
    now_ = now_ + seconds(18);
    VoteLocal(0, Lengths({.01f, .01f}), seconds(16));
    VoteLocal(1, Lengths({.01f, .01f}, 8), seconds(16));  // two seconds each
  }
  // Waited for as long as 16 of them take it; its own limit is two, and two to send.
  const Duration wait = *last_open_.deadline;
  EXPECT_EQ(last_open_.seats[1].steps_until, wait - seconds(4));
  EXPECT_GE(wait, seconds(34));
}

TEST_F(EngineLocalTest, OneThatWasTooLateIsKnownByWhatCameLate) {
  config_.observer_after = 100;
  Start(3);
  for (int i = 0; i < 3; ++i) Round16({0, 1, 2});
  const Round missed = round_;
  const Incarnation slow = Inc(2);
  now_ = now_ + seconds(18);
  VoteLocal(0, Lengths({.01f, .01f}), seconds(16));
  VoteLocal(1, Lengths({.01f, .01f}), seconds(16));
  Sleep();  // the deadline
  ASSERT_EQ(round_, missed.next());
  for (int i = 0; i < 16; ++i) {  // until the median is of such rounds
    const Round round = Round(round_.value() - 1);
    Do(ScalarsIn{Id(2), slow, round, Attempt(0), Lengths({.01f, .01f}), seconds(16)});
    now_ = now_ + seconds(18);
    VoteLocal(0, Lengths({.01f, .01f}), seconds(16));
    VoteLocal(1, Lengths({.01f, .01f}), seconds(16));
    if (round_.value() == round.value() + 1) Sleep();
  }
  EXPECT_LT(*last_open_.seats[2].steps_until, *last_open_.seats[0].steps_until)
      << "what it sends takes longer";
}

TEST_F(EngineLocalTest, ASilentRoundWantsScalarsAloneAndCountsNothing) {
  rule_.local = {.steps = 25, .eta_first = 0.5f, .eta_last = 0.5f, .from = StepsFrom::kX0};
  rule_.next = {.kind = CommitKind::kNone, .gamma = 0.5f, .main_round = false};
  Start(2);
  EXPECT_TRUE(last_open_.local.is_silent());
  // Who sends a ballot all the same is not counted for it.
  EXPECT_THAT(Chunk(0, 0), IsEmpty());
  EXPECT_THAT(Chunk(0, 1), IsEmpty());
  Scalars(0);
  rule_.local.from = StepsFrom::kContinue;
  const Actions actions = Scalars(1);
  EXPECT_FALSE(Has<CloseChunk>(actions));
  const CommitRound commit = One<CommitRound>(actions);
  EXPECT_EQ(commit.kind, CommitKind::kNone);
  EXPECT_EQ(commit.gamma, 0.5f) << "the trial's, for those who look";
  EXPECT_EQ(commit.next_data_step, DataStep(25));
  EXPECT_EQ(commit.loss, 2.0);
  EXPECT_EQ(Ids(commit.voters), (std::vector<uint32_t>{0, 1}));
  EXPECT_EQ(commit.abstentions, 0u);
  EXPECT_EQ(Notices(actions), "") << "nothing is wrong";
  EXPECT_EQ(Totals().rounds_without_step, 0u);
  EXPECT_EQ(last_open_.local.from, StepsFrom::kContinue);
  EXPECT_EQ(last_open_.data_step, DataStep(25));
  EXPECT_EQ(View().phase, Phase::kRoundOpen) << "and nobody backs off";
  EXPECT_EQ(Member(0).ballots, 1u);
}

TEST_F(EngineLocalTest, ASilentRoundEndsAtItsDeadlineWithThoseWhoSaidTheirs) {
  rule_.local = {.steps = 4, .from = StepsFrom::kX0};
  rule_.next = {.kind = CommitKind::kNone, .main_round = false};
  Start(3);
  now_ = now_ + seconds(4);
  Do(ScalarsIn{Id(0), Inc(0), round_, attempt_, SomeScalars(), seconds(4)});
  Do(ScalarsIn{Id(1), Inc(1), round_, attempt_, SomeScalars(), seconds(4)});
  const CommitRound commit = One<CommitRound>(Sleep());
  EXPECT_EQ(Ids(commit.voters), (std::vector<uint32_t>{0, 1}));
  EXPECT_EQ(commit.abstentions, 1u);
  // What was sent says nothing of ballots: the next round that is voted on waits as one of which
  // nothing but its computing is known.
  rule_.local = {.steps = 8, .eta_first = 1, .eta_last = 1};
  Do(ScalarsIn{Id(0), Inc(0), round_, attempt_, SomeScalars(), seconds(4)});
  Do(ScalarsIn{Id(1), Inc(1), round_, attempt_, SomeScalars(), seconds(4)});
  Do(ScalarsIn{Id(2), Inc(2), round_, attempt_, SomeScalars(), seconds(4)});
  EXPECT_GE(*last_open_.deadline, config_.deadline.initial);
}

TEST_F(EngineLocalTest, WhereNobodyCanGoOnTheRuleIsToldSo) {
  rule_.local = {.steps = 4, .from = StepsFrom::kContinue};
  rule_.without_ballot =
      StepsizeDecision{.kind = CommitKind::kRewind, .gamma = 0.5f, .main_round = false};
  rule_.without_ballot->next_data_step = DataStep(3);
  Start(2);
  Abstain(0, AbstainReason::kOther);
  Abstain(1, AbstainReason::kOther);
  ASSERT_EQ(attempt_, Attempt(1)) << "as any round it opens once more";
  Abstain(0, AbstainReason::kOther);
  const CommitRound commit = One<CommitRound>(Abstain(1, AbstainReason::kOther));
  EXPECT_EQ(commit.kind, CommitKind::kRewind);
  EXPECT_EQ(commit.next_data_step, DataStep(3));
}

TEST_F(EngineLocalTest, AStepFromARuleThatAskedForSilenceEndsTheRun) {
  rule_.local = {.steps = 4, .from = StepsFrom::kX0};
  rule_.next = {.kind = CommitKind::kStep, .gamma = 0.5f};
  Start(1);
  const EndRun end = One<EndRun>(Scalars(0));
  EXPECT_EQ(end.status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(end.status.message()), HasSubstr("a step although there is no verdict"));
}

TEST_F(EngineLocalTest, AnotherEngineGoesOnWithTheSameDeadlines) {
  Start(2);
  for (int i = 0; i < 3; ++i) Round16({0, 1});
  hold_durable_ = true;
  Round16({0, 1});
  const EngineState state = engine().State();
  EXPECT_EQ(state.course.minibatches, 64u);
  ASSERT_EQ(state.workers.size(), 2u);
  EXPECT_EQ(state.workers[0].local.steps.recent.size(), 4u);
  EXPECT_EQ(state.local.sendings.recent.size(), 4u);
  hold_durable_ = false;
  Make(state);
  Ready(0);
  Ready(1);
  EXPECT_EQ(last_open_.data_step, DataStep(64));
  EXPECT_EQ(ToDeadline(), seconds(18) + milliseconds(4500));
}

}  // namespace
}  // namespace signvote::round
