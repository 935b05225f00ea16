// Lever with local steps: the race of silent rounds, and the scale that moves once a round.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "server/stepsize/fixed.h"
#include "server/stepsize/lever.h"
#include "server/stepsize/lever_scale.h"

namespace signvote {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

LocalSchedule Schedule(const char* text, uint64_t rounds) {
  return *LocalSchedule::Parse(text, rounds);
}

LeverConfig Config(const char* text, uint64_t rounds, bool race) {
  return {.momentum = true, .race = race, .main_rounds = rounds, .local = Schedule(text, rounds)};
}

// Where a run stands, as the engine would have it, and a rule restored before every decision.
class LocalRun {
 public:
  explicit LocalRun(const LeverConfig& config) : config_(config), rule_(MakeLeverRule(config)) {}

  RoundAhead ahead() const { return ahead_; }
  LocalSteps Local() const { return rule_->Local(ahead_); }
  std::vector<ScalarKind> Wanted() const { return rule_->Wanted(ahead_); }
  StepsizeRule& rule() { return *rule_; }

  StepsizeDecision Decide(const std::vector<WorkerScalars>& workers) {
    return Take([&](const RuleInput& input) { return rule_->Decide(input); }, workers, false);
  }
  StepsizeDecision Nobody(bool nonfinite) {
    return Take([&](const RuleInput& input) { return rule_->DecideWithoutBallot(input); }, {},
                nonfinite);
  }

 private:
  template <typename Ask>
  StepsizeDecision Take(const Ask& ask, const std::vector<WorkerScalars>& workers, bool nonfinite) {
    auto again = MakeLeverRule(config_);
    const absl::Status restored = again->Restore(rule_->Save());
    EXPECT_TRUE(restored.ok()) << Describe(restored);
    rule_ = std::move(again);
    const LocalSteps local = Local();
    const std::vector<ScalarKind> asked = Wanted();
    const StepsizeDecision decision = ask(RuleInput{.ahead = ahead_,
                                                    .main_rounds_max = config_.main_rounds,
                                                    .asked = asked,
                                                    .workers = workers,
                                                    .nonfinite = nonfinite,
                                                    .local = local});
    const DataStep after(ahead_.data_step.value() + local.steps);
    ahead_.data_step = decision.next_data_step.value_or(after);
    ahead_.round = ahead_.round.next();
    if (decision.kind == CommitKind::kStep && decision.main_round) ++ahead_.main_rounds;
    return decision;
  }

  const LeverConfig config_;
  std::unique_ptr<StepsizeRule> rule_;
  RoundAhead ahead_{.data_step = DataStep(5)};
};

std::vector<WorkerScalars> Losses(double loss) { return {{.loss = loss}, {.loss = loss * 1.01}}; }

// A loss that falls with η·steps up to η = best, and rises beyond it.
double LossOf(double eta, double best, uint64_t step) {
  const double off = std::log10(eta / best);
  return 3 + 0.3 * off * off - 0.1 * static_cast<double>(step);
}

TEST(LocalLeverTest, ATrialIsFourSilentRoundsFromX0OnTheSameMinibatches) {
  // T = 300 · 16 = 4,800: trials of h' = 20 minibatches are four rounds of 5, those of h = 60 four of 15.
  LocalRun run(Config("16", 300, true));
  std::vector<uint64_t> began;
  uint64_t rounds = 0, minibatches = 0;
  std::vector<double> etas;
  StepsizeDecision decision;
  while (!run.rule().race().over) {
    ASSERT_LT(++rounds, 1000u);
    const LocalSteps local = run.Local();
    const uint64_t step = (rounds - 1) % 4;
    EXPECT_EQ(local.from, step == 0 ? StepsFrom::kX0 : StepsFrom::kContinue) << rounds;
    EXPECT_EQ(local.eta_first, local.eta_last);
    EXPECT_THAT(run.Wanted(), IsEmpty()) << "losses alone";
    EXPECT_TRUE(local.steps == 5 || local.steps == 15) << local.steps;
    if (step == 0) {
      began.push_back(run.ahead().data_step.value());
      etas.push_back(static_cast<double>(local.eta_first));
    }
    minibatches += local.steps;
    decision = run.Decide(Losses(LossOf(static_cast<double>(local.eta_first), 0.01, step)));
    EXPECT_EQ(decision.kind, step == 3 ? CommitKind::kRewind : CommitKind::kNone) << rounds;
    EXPECT_FALSE(decision.main_round);
    EXPECT_EQ(decision.gamma, local.eta_first);
  }
  for (const uint64_t first : began) EXPECT_EQ(first, 5u);
  EXPECT_EQ(run.ahead().data_step, DataStep(5)) << "the run begins with the trials' minibatches";
  EXPECT_LE(minibatches, 4800u / 4);
  EXPECT_EQ(run.rule().race().rounds, rounds);
  EXPECT_LE(rounds, run.rule().race().rounds_max);
  EXPECT_EQ(run.rule().race().trials, began.size());
  // η of the run is half of the best trial's.
  EXPECT_NEAR(std::log10(static_cast<double>(run.Local().eta_first)), std::log10(0.01 / 2), 0.02);
  EXPECT_EQ(run.Local().from, StepsFrom::kReplica);
  EXPECT_EQ(run.Local().steps, 16u);
  EXPECT_EQ(run.rule().local_steps_max(), 60u) << "h' twice doubled, which a fifth of T/4 holds";
}

TEST(LocalLeverTest, WithRawSignsTheRunBeginsAtAThirdOfTheBestTrials) {
  LeverConfig config = Config("16", 300, true);
  config.momentum = false;
  LocalRun run(config);
  while (!run.rule().race().over) {
    ASSERT_LT(run.rule().race().rounds, 1000u);
    run.Decide(Losses(LossOf(static_cast<double>(run.Local().eta_first), 0.01, 0)));
  }
  EXPECT_NEAR(std::log10(static_cast<double>(run.Local().eta_first)), std::log10(0.01 / 3), 0.02);
}

TEST(LocalLeverTest, ATrialWithoutFiniteLossesInTwoRoundsIsOverAtOnce) {
  LocalRun run(Config("16", 300, true));
  StepsizeDecision decision = run.Nobody(true);
  EXPECT_EQ(decision.kind, CommitKind::kNone);
  EXPECT_EQ(run.Local().from, StepsFrom::kContinue);
  decision = run.Nobody(true);
  EXPECT_EQ(decision.kind, CommitKind::kRewind)
      << "also before its first loss: it moves from there";
  EXPECT_THAT(decision.reason, HasSubstr("no finite loss"));
  EXPECT_LT(run.Local().eta_first, 1e-3f) << "the next one is smaller";
}

TEST(LocalLeverTest, NoRoundOfATrialIsLongerThanAMainRoundMayBe) {
  LocalRun run(Config("16", 1'000'000, true));
  EXPECT_EQ(run.Local().steps, kLocalStepsMax);
  EXPECT_EQ(run.rule().local_steps_max(), kLocalStepsMax);
  // Every larger stepsize is better: all trials that there are. What is saved is taken up again.
  for (uint64_t rounds = 0; !run.rule().race().over; ++rounds) {
    ASSERT_LT(rounds, 1000u);
    run.Decide(Losses(1 / (1 + static_cast<double>(run.Local().eta_first))));
    EXPECT_LE(run.rule().race().rounds, run.rule().race().rounds_max);
  }
  run.Decide(Losses(1));
}

TEST(LocalLeverTest, AWorkerThatStoppedEarlySaysNothingOfATrial) {
  LocalRun whole(Config("16", 300, true)), cut(Config("16", 300, true));
  for (int round = 0; round < 8; ++round) {
    const double loss = round < 4 ? 3 : 2.5;
    whole.Decide({{.loss = loss}});
    // The second one's mean is of fewer minibatches, and lower in the first trial alone.
    cut.Decide({{.loss = loss}, {.loss = round < 4 ? 0.1 : 9, .local_steps = 3}});
  }
  EXPECT_EQ(whole.rule().Save().size(), cut.rule().Save().size());
  EXPECT_EQ(whole.Local().eta_first, cut.Local().eta_first);
}

TEST(LocalLeverTest, ATrialWhoseFirstRoundWasPassedOverBeginsAnewWhereNobodyCanGoOn) {
  LocalRun run(Config("16", 300, true));
  EXPECT_EQ(run.Nobody(true).kind, CommitKind::kNone);
  EXPECT_EQ(run.Local().from, StepsFrom::kContinue);
  // All workers were lost, say: those who come have no y.
  run.Nobody(false);
  EXPECT_EQ(run.Local().from, StepsFrom::kX0);
  EXPECT_FLOAT_EQ(run.Local().eta_first, 1e-3f) << "nothing was said of the stepsize";
}

TEST(LocalLeverTest, ATrialThatNobodyCanGoOnWithIsRunOnceMore) {
  LocalRun run(Config("16", 300, true));
  run.Decide(Losses(3));
  const StepsizeDecision decision = run.Nobody(false);
  EXPECT_EQ(decision.kind, CommitKind::kRewind);
  EXPECT_THAT(decision.reason, HasSubstr("once more"));
  EXPECT_EQ(run.Local().eta_first, 1e-3f);
  EXPECT_EQ(run.Local().from, StepsFrom::kX0);
  EXPECT_EQ(run.ahead().data_step, DataStep(5));
}

// ---- phase B

WorkerScalars Leaning(double z, double product = 2) {
  return {.loss = 1, .wanted = {z * product, product}};
}

TEST(LocalLeverTest, TheScaleFollowsTheFormulaOverMinibatches) {
  // 16 for a quarter of the data, then 96.
  const uint64_t R = 40;
  const LocalSchedule schedule = Schedule("16,96@25", R);
  const double T = static_cast<double>(schedule.minibatches());
  LocalRun run(Config("16,96@25", R, false));
  double log_scale = std::log(1e-3), v = 0, s_prev = 1e-3;
  uint64_t k = 0, capped = 0;
  for (uint64_t r = 0; r < R; ++r) {
    const double t = static_cast<double>(schedule.Before(r));
    const double H = schedule.StepsAt(r);
    const LocalSteps local = run.Local();
    EXPECT_EQ(local.steps, schedule.StepsAt(r));
    EXPECT_NEAR(local.eta_first, s_prev * (1 - t / T), 1e-6 * s_prev) << r;
    EXPECT_NEAR(local.eta_last, s_prev * (1 - (t + H - 1) / T), 1e-6 * s_prev) << r;
    const bool window = t >= std::floor(T / 16) && t < 0.75 * T;
    if (window) {
      EXPECT_THAT(run.Wanted(), ElementsAre(ScalarKind::kLocalInner, ScalarKind::kLocalProduct));
    } else {
      EXPECT_THAT(run.Wanted(), IsEmpty()) << r;
    }
    EXPECT_EQ(run.rule().x0_over(run.ahead()), t >= 0.75 * T) << r;
    const double z = 0.4 * std::cos(static_cast<double>(r));
    const StepsizeDecision decision = run.Decide({Leaning(z), Leaning(z, 3), Leaning(z)});
    if (window) {
      v = 0.97 * v + 0.03 * z * z;
      const double unit =
          std::clamp(z / std::sqrt(v / (1 - std::pow(0.97, static_cast<double>(++k)))), -2.0, 2.0);
      const double way = 2 * std::log((t + H + 1) / (t + 1)) * unit;
      if (std::abs(way) > 0.3) ++capped;
      log_scale += std::clamp(way, -0.3, 0.3);
    }
    const double s = std::exp(log_scale);
    EXPECT_EQ(decision.kind, CommitKind::kStep);
    EXPECT_EQ(decision.gamma, local.eta_first) << "what the round's minibatches were taken with";
    EXPECT_NEAR(decision.rho, s / s_prev, 1e-6) << r;
    s_prev = s;
  }
  EXPECT_GT(capped, 0u);
}

TEST(LocalLeverTest, NoRoundMovesTheScaleByMoreThanTheLimit) {
  LeverScale scale(1e-3);
  // A round of 64 behind the first 64: the first update is of full length, 2·ln 2·1 = 1.39 without it.
  scale.MoveOver({.z = 1, .workers = 4}, 64, 128, 2);
  EXPECT_NEAR(scale.s(), 1e-3 * std::exp(0.3), 1e-9);
  scale.MoveOver({.z = -1, .workers = 4}, 128, 192, 2);
  EXPECT_NEAR(scale.s(), 1e-3, 1e-9);
  scale.MoveOver({.z = 0, .workers = 4}, 192, 256, 2);
  EXPECT_NEAR(scale.s(), 1e-3, 1e-9);
}

TEST(LocalLeverTest, WhoseInnerProductIsLongerThanItsFactorsIsLeftOut) {
  const std::vector<ScalarKind> asked = {ScalarKind::kLocalInner, ScalarKind::kLocalProduct};
  const auto lean = [&](const std::vector<WorkerScalars>& workers) {
    return MeasureLocalLean({.asked = asked, .workers = workers});
  };
  EXPECT_FALSE(lean({{.wanted = {3, 2}}, {.wanted = {0, 0}}, {.wanted = {}}}).has_value());
  const auto left = lean({{.wanted = {30, 2}}, {.wanted = {0.5, 2}}});
  ASSERT_TRUE(left.has_value());
  EXPECT_EQ(left->workers, 1u);
  EXPECT_DOUBLE_EQ(left->z, 0.25);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(lean({{.wanted = {nan, 2}}}).has_value());
}

TEST(LocalLeverTest, ScalarsThatDoNotComeLeaveTheScaleAndLiteRescalesNothing) {
  LocalRun run(Config("64", 100, false));
  while (run.ahead().main_rounds < 20) EXPECT_EQ(run.Decide({}).rho, 1.0f);
  EXPECT_NEAR(run.Local().eta_first, 1e-3 * 0.8, 1e-9);
  LeverConfig lite = Config("64", 100, false);
  lite.form = LeverForm::kLite;
  LocalRun other(lite);
  while (other.ahead().main_rounds < 20) EXPECT_EQ(other.Decide({Leaning(0.5)}).rho, 1.0f);
  EXPECT_GT(other.Local().eta_first, 1e-3 * 0.8) << "its steps grow all the same";
}

TEST(LocalLeverTest, AStateOfARunWithoutLocalStepsIsRefused) {
  const auto plain = MakeLeverRule({.momentum = true, .main_rounds = 4800});
  const auto local = MakeLeverRule(Config("16", 300, true));
  EXPECT_EQ(local->Restore(plain->Save()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(plain->Restore(local->Save()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(local->Restore(local->Save()).ok());
}

// ---- fixed

TEST(LocalFixedTest, ASchedulesTimeIsMinibatches) {
  const auto rule = MakeFixedRule(
      {.gamma0 = 0.5, .schedule = {.kind = ScheduleKind::kLinear}, .local = Schedule("16", 100)});
  const LocalSteps first = rule->Local({.main_rounds = 0});
  EXPECT_EQ(first.steps, 16u);
  EXPECT_EQ(first.eta_first, 0.5f);
  EXPECT_FLOAT_EQ(first.eta_last, static_cast<float>(0.5 * (1 - 15.0 / 1600)));
  const LocalSteps last = rule->Local({.main_rounds = 99});
  EXPECT_FLOAT_EQ(last.eta_first, static_cast<float>(0.5 * 16 / 1600));
  EXPECT_FLOAT_EQ(last.eta_last, static_cast<float>(0.5 / 1600)) << "the last one still moves";
  EXPECT_EQ(rule->Decide({.ahead = {.main_rounds = 50}, .main_rounds_max = 100}).gamma, 0.25f);
  EXPECT_EQ(rule->local_steps_max(), 16u);
  EXPECT_EQ(MakeFixedRule({})->Local({}), LocalSteps{}) << "a vote";
}

}  // namespace
}  // namespace signvote
