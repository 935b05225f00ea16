#include "server/stepsize/lever.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/unit/server/stepsize/toy_run.h"

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const std::vector<ScalarKind> kAsked = {ScalarKind::kX0Inner, ScalarKind::kX0Distance};

LeverConfig Raw(uint64_t main_rounds, double start = 1e-3) {
  return {.start = start, .main_rounds = main_rounds};
}

LeverConfig Momentum(uint64_t main_rounds) {
  return {.momentum = true, .main_rounds = main_rounds};
}

toy::Result TrainLever(const toy::Problem& problem, const LeverConfig& config,
                       toy::Options options) {
  options.main_rounds = config.main_rounds;
  auto rule = MakeLeverRule(config);
  return toy::Train(problem, rule.get(), options);
}

std::vector<float> Gammas(const toy::Result& result) {
  std::vector<float> gammas;
  for (const StepsizeDecision& decision : result.decisions) gammas.push_back(decision.gamma);
  return gammas;
}

// The stepsize that the run began with.
float FirstMain(const toy::Result& result) {
  for (const StepsizeDecision& decision : result.decisions)
    if (decision.main_round && decision.kind == CommitKind::kStep) return decision.gamma;
  return 0;
}

// s in the end.
double LastScale(const toy::Result& result) { return result.decisions.back().state.front().second; }

// ---- phase B alone

// A run without a race; nobody moves, so that scalars are what the test says.
class MainRounds {
 public:
  explicit MainRounds(const LeverConfig& config) : config_(config), rule_(MakeLeverRule(config)) {}
  StepsizeDecision Next(const std::vector<WorkerScalars>& workers) {
    const RoundAhead ahead{.main_rounds = t_++};
    asked_ = rule_->Wanted(ahead);
    return rule_->Decide({.ahead = ahead,
                          .main_rounds_max = config_.main_rounds,
                          .asked = kAsked,
                          .workers = workers});
  }
  const std::vector<ScalarKind>& asked() const { return asked_; }

 private:
  const LeverConfig config_;
  std::unique_ptr<StepsizeRule> rule_;
  std::vector<ScalarKind> asked_;
  uint64_t t_ = 0;
};

WorkerScalars Leaning(double z) {
  return {.loss = 1, .g_l1 = 2, .g_l2_squared = 4, .wanted = {z * 2 * 0.5, 0.5}};
}

void ExpectTheFormula(bool momentum) {
  const uint64_t T = 640, h = 40;  // T/16
  MainRounds rule({.start = 0.01, .momentum = momentum, .race = false, .main_rounds = T});
  double log_scale = std::log(0.01), v = 0, s_prev = 0.01;
  uint64_t k = 0;
  for (uint64_t t = 0; t < T; ++t) {
    const double z = 0.1 * std::sin(static_cast<double>(t)) + (t < 200 ? 0.05 : -0.05);
    const StepsizeDecision decision = rule.Next({Leaning(z), Leaning(z), Leaning(z)});
    const bool window = t >= h && t < 480;
    if (window) {
      v = 0.97 * v + 0.03 * z * z;
      const double unit = z / std::sqrt(v / (1 - std::pow(0.97, static_cast<double>(++k))));
      const double up = momentum ? 1 : std::min(1.0, 4 * static_cast<double>(t) / T);
      log_scale +=
          3 * (z > 0 ? up : 1) / (static_cast<double>(t) + 1) * std::clamp(unit, -2.0, 2.0);
    }
    const double s = std::exp(log_scale);
    EXPECT_EQ(decision.kind, CommitKind::kStep);
    EXPECT_TRUE(decision.main_round);
    EXPECT_NEAR(decision.gamma, s * (1 - static_cast<double>(t) / T), 1e-6 * s) << t;
    EXPECT_NEAR(decision.rho, s / s_prev, 1e-6) << t;
    if (window) {
      EXPECT_THAT(rule.asked(), ElementsAre(ScalarKind::kX0Inner, ScalarKind::kX0Distance)) << t;
    } else {
      EXPECT_EQ(decision.rho, 1.0f) << t;
      EXPECT_THAT(rule.asked(), IsEmpty()) << t;
    }
    s_prev = s;
  }
}

TEST(LeverRuleTest, TheMainRoundsFollowTheFormula) { ExpectTheFormula(true); }

TEST(LeverRuleTest, WithRawSignsTheScaleGrowsLessInTheFirstQuarterOfARun) {
  ExpectTheFormula(false);
}

TEST(LeverRuleTest, TheLiteFormNeverRescalesHasGainOneAndFreezesAtTheHalf) {
  const uint64_t T = 640, h = 40;
  MainRounds rule(
      {.form = LeverForm::kLite, .start = 0.01, .momentum = true, .race = false, .main_rounds = T});
  double log_scale = std::log(0.01);
  for (uint64_t t = 0; t < T; ++t) {
    const StepsizeDecision decision = rule.Next({Leaning(0.1), Leaning(0.1), Leaning(0.1)});
    if (t >= h && t < T / 2) log_scale += 1 / (static_cast<double>(t) + 1);  // always z = √v
    EXPECT_EQ(decision.rho, 1.0f);
    EXPECT_NEAR(decision.gamma, std::exp(log_scale) * (1 - static_cast<double>(t) / T), 1e-7) << t;
    EXPECT_EQ(rule.asked().empty(), t < h || t >= T / 2) << t;
  }
}

TEST(LeverRuleTest, WithoutScalarsTheScaleStaysAndTheScheduleGoesOn) {
  MainRounds rule({.start = 0.01, .race = false, .main_rounds = 640});
  for (uint64_t t = 0; t < 640; ++t) {
    const StepsizeDecision decision = rule.Next({});
    EXPECT_EQ(decision.gamma,
              static_cast<float>(std::exp(std::log(0.01)) * (1 - static_cast<double>(t) / 640)));
    EXPECT_EQ(decision.rho, 1.0f);
  }
}

TEST(LeverRuleTest, ARunOfUnknownLengthGoesInLegsThatDouble) {
  MainRounds rule({.start = 0.01, .race = false});
  double s = 0.01;
  for (uint64_t t = 0; t < 3500; ++t) {
    const StepsizeDecision decision = rule.Next({Leaning(0.1), Leaning(0.1)});
    const uint64_t first = t < 1000 ? 0 : t < 3000 ? 1000 : 3000;
    const uint64_t rounds = t < 1000 ? 1000 : t < 3000 ? 2000 : 4000;
    const double factor = 1 - static_cast<double>(t - first) / static_cast<double>(rounds);
    if (t < 750) {
      s = decision.gamma / factor;
    } else {
      // As the first leg ended.
      EXPECT_NEAR(decision.gamma / factor, s, 1e-6 * s) << t;
      EXPECT_EQ(decision.rho, 1.0f);
      EXPECT_THAT(rule.asked(), IsEmpty());
    }
  }
  EXPECT_GT(s, 0.02);
}

TEST(LeverRuleTest, InARoundWithoutBallotsOfTheRunNothingMoves) {
  auto rule = MakeLeverRule({.race = false, .main_rounds = 640});
  const StepsizeDecision decision = rule->DecideWithoutBallot({.gamma = 0.5f});
  EXPECT_EQ(decision.kind, CommitKind::kNone);
  EXPECT_EQ(decision.gamma, 0.5f);
}

// ---- the race as part of a run

TEST(LeverRuleTest, TrialsBeginAtX0WithTheSameMinibatchesAndAreNoMainRounds) {
  const auto problem = toy::Logistic();
  const toy::Result result = TrainLever(*problem, Raw(640), {});
  ASSERT_TRUE(result.status.ok()) << result.status;
  uint64_t step = 0, rewinds = 0;
  for (size_t i = 0; i < result.decisions.size(); ++i) {
    EXPECT_EQ(result.data_steps[i], DataStep(step)) << i;
    const StepsizeDecision& decision = result.decisions[i];
    if (i < result.race_rounds) {
      EXPECT_FALSE(decision.main_round);
    }
    ++step;
    if (decision.kind == CommitKind::kRewind) {
      step = 0;
      ++rewinds;
    }
  }
  EXPECT_GE(rewinds, 6u);
  // The last trial's rewind is the run's beginning.
  EXPECT_EQ(result.decisions[result.race_rounds - 1].kind, CommitKind::kRewind);
  EXPECT_EQ(result.decisions.size(), result.race_rounds + 640);
}

TEST(LeverRuleTest, X0IsOverWhenTheScaleStaysAndNotBefore) {
  for (const LeverForm form : {LeverForm::kFull, LeverForm::kLite}) {
    const uint64_t frozen = form == LeverForm::kFull ? 480 : 320;
    auto rule = MakeLeverRule({.form = form, .race = false, .main_rounds = 640});
    EXPECT_FALSE(rule->x0_over({.main_rounds = frozen - 1}));
    EXPECT_TRUE(rule->x0_over({.main_rounds = frozen}));
    EXPECT_TRUE(rule->x0_over({.main_rounds = 640}));
    auto unknown = MakeLeverRule({.form = form, .race = false});
    EXPECT_FALSE(unknown->x0_over({.main_rounds = 499}));
    EXPECT_TRUE(unknown->x0_over({.main_rounds = 1001})) << "s moves in the first leg only";
    EXPECT_FALSE(MakeLeverRule(Raw(640))->x0_over({.main_rounds = 640})) << "it races";
  }
  // What the whole run does agrees: no rescaling, and nothing is asked, from there on.
  const auto problem = toy::Logistic();
  const toy::Result result = TrainLever(*problem, Raw(640), {});
  for (size_t i = result.race_rounds + 480; i < result.decisions.size(); ++i) {
    EXPECT_EQ(result.decisions[i].rho, 1.0f) << i;
    EXPECT_EQ(result.decisions[i].kind, CommitKind::kStep) << i;
  }
}

TEST(LeverRuleTest, EachRoundSaysHowFarTheRaceIs) {
  const auto problem = toy::Logistic();
  const toy::Result result = TrainLever(*problem, Raw(640), {});
  RaceProgress last{.trials = 1, .rounds_max = 160};
  uint64_t rewinds = 0;
  for (size_t i = 0; i < result.race_rounds; ++i) {
    const RaceProgress race = result.decisions[i].race;
    if (result.decisions[i].kind == CommitKind::kRewind) ++rewinds;
    last = {.trials = rewinds + 1, .rounds = i + 1, .rounds_max = 160};
    if (i + 1 == result.race_rounds) last = {rewinds, i + 1, 160, true};
    ASSERT_EQ(race, last) << i;
  }
  EXPECT_EQ(result.decisions.back().race, last) << "the run remembers";
  auto without = MakeLeverRule({.race = false, .main_rounds = 640});
  EXPECT_EQ(without->Decide({}).race, RaceProgress());
}

TEST(LeverRuleTest, ARoundWithoutBallotsBeforeTheRaceGoesOnToAnotherMinibatch) {
  auto rule = MakeLeverRule(Raw(640));
  EXPECT_EQ(rule->DecideWithoutBallot({.ahead = {.data_step = DataStep(0)}}).kind,
            CommitKind::kNone);
  const std::vector<WorkerScalars> workers = {{.loss = 1}};
  (void)rule->Decide({.ahead = {.data_step = DataStep(1)}, .workers = workers});
  const StepsizeDecision decision =
      rule->DecideWithoutBallot({.ahead = {.data_step = DataStep(2)}});
  EXPECT_EQ(decision.kind, CommitKind::kRewind);
  EXPECT_EQ(decision.next_data_step, DataStep(1));
}

TEST(LeverRuleTest, ARaceThatBeginsLaterRewindsToItsOwnFirstMinibatch) {
  auto rule = MakeLeverRule(Raw(640));
  const std::vector<WorkerScalars> workers = {{.loss = 1}};
  StepsizeDecision decision;
  for (uint64_t step = 100; decision.kind == CommitKind::kStep && step < 200; ++step)
    decision = rule->Decide({.ahead = {.data_step = DataStep(step)}, .workers = workers});
  EXPECT_EQ(decision.kind, CommitKind::kRewind);
  EXPECT_EQ(decision.next_data_step, DataStep(100));
}

TEST(LeverRuleTest, TheRaceTakesNoMoreThanAQuarterOfTheRun) {
  const auto problem = toy::Logistic();
  for (const uint64_t rounds : {320u, 400u, 600u, 1200u}) {
    for (const double start : {1e-7, 1e-3, 1.0}) {
      const toy::Result result = TrainLever(*problem, Raw(rounds, start), {});
      ASSERT_TRUE(result.status.ok()) << result.status;
      EXPECT_LE(result.race_rounds, rounds / 4) << rounds << " from " << start;
      EXPECT_GT(result.race_rounds, 0u);
    }
  }
}

TEST(LeverRuleTest, FromTheDefaultStartTheRaceOfALongRunTakesATwelfthAtMost) {
  const auto problem = toy::Logistic();
  const toy::Result result = TrainLever(*problem, Raw(4000), {});
  EXPECT_LE(result.race_rounds, 4000u * 8 / 100);
}

// What the race's last reason says that it chose.
double Chosen(const toy::Result& result) {
  for (const StepsizeDecision& decision : result.decisions) {
    const size_t at = decision.reason.find("the race chose ");
    if (at != std::string::npos) return std::atof(decision.reason.c_str() + at + 15);
  }
  return 0;
}

TEST(LeverRuleTest, ItBeginsBelowTheRacesStepsizeByKappa) {
  EXPECT_EQ(LeverKappa(true, false, 40, 640), 0.5);
  EXPECT_EQ(LeverKappa(true, false, 60, 4800), 0.5);
  EXPECT_EQ(LeverKappa(true, true, 60, 4800), 0.25);
  for (const bool below_still : {false, true}) {
    EXPECT_EQ(LeverKappa(false, below_still, 40, 640), 0.5);
    EXPECT_EQ(LeverKappa(false, below_still, 60, 4800), 0.1);
  }
  const auto problem = toy::Logistic();
  for (const bool momentum : {false, true}) {
    LeverConfig config = Raw(1200);
    config.momentum = momentum;
    const toy::Result result = TrainLever(*problem, config, {});
    const double kappa = double{FirstMain(result)} / Chosen(result);
    // The climb's trials have 60 rounds.
    EXPECT_NEAR(kappa, momentum ? 0.5 : 0.4, 1e-3);
  }
}

TEST(LeverRuleTest, FromAnyStartItComesNearTheBestFixedStepsize) {
  // The best of 21 fixed stepsizes, a factor of 1.8 apart, each with its linear decay.
  struct Case {
    const char* what;
    std::unique_ptr<toy::Problem> problem;
    double momentum, excess;
  };
  Case cases[] = {{"quadratic, raw", toy::Quadratic(), 0, 0.20},
                  {"logistic, raw", toy::Logistic(), 0, 0.03},
                  {"logistic, Signum", toy::Logistic(), 0.9, 0.03}};
  for (const Case& c : cases) {
    const toy::Options options{.main_rounds = 640, .momentum = c.momentum};
    const toy::Best best = toy::BestFixed(*c.problem, options);
    for (const double start : {1e-7, 1e-3, 1e-2}) {
      const LeverConfig config{.start = start, .momentum = c.momentum > 0, .main_rounds = 640};
      const toy::Result result = TrainLever(*c.problem, config, options);
      ASSERT_TRUE(result.status.ok()) << result.status;
      std::printf("%s from %.0e: %.5f, best %.5f at %.2e; race %d, first %.3e\n", c.what, start,
                  result.loss, best.loss, best.stepsize, static_cast<int>(result.race_rounds),
                  static_cast<double>(FirstMain(result)));
      EXPECT_LE(result.loss, best.loss * (1 + c.excess)) << c.what << " from " << start;
    }
  }
}

// A trial begins with every second minibatch of its rounds: one that nobody has a finite loss at is
// left out by all of them, and the run comes to the same end.
TEST(LeverRuleTest, APoisonedMinibatchAmongTheTrialsDoesNotEndTheRun) {
  const auto problem = toy::Logistic();
  const toy::Options alone{.workers = 1};
  const toy::Result expected = TrainLever(*problem, Raw(640), alone);
  for (const uint64_t poisoned : {0u, 1u, 9u, 15u, 30u}) {
    toy::Options options = alone;
    options.nonfinite = [poisoned](DataStep step) { return step == DataStep(poisoned); };
    const toy::Result result = TrainLever(*problem, Raw(640), options);
    ASSERT_TRUE(result.status.ok()) << result.status;
    EXPECT_NEAR(result.loss / expected.loss, 1, 0.1) << poisoned;
  }
}

TEST(LeverRuleTest, ItSaysWhereTheRaceHadNoRoundsForTheNextStepsize) {
  const auto problem = toy::Logistic();
  const toy::Result far = TrainLever(*problem, Raw(400, 1e-7), {});
  EXPECT_NEAR(Chosen(far), 1e-7 * std::pow(10, 2.5), 1e-8);
  EXPECT_THAT(far.decisions[far.race_rounds - 1].reason,
              HasSubstr("the largest that it had rounds for"));
  for (size_t i = far.race_rounds; i < far.decisions.size(); ++i) {
    EXPECT_THAT(far.decisions[i].warning, HasSubstr("begin again with --lever-start 3.16e-05"));
  }
  const toy::Result near = TrainLever(*problem, Raw(640), {});
  EXPECT_EQ(near.decisions.back().warning, "");
  // The warning outlives a restart.
  const LeverConfig config = Raw(400, 1e-7);
  const toy::Result again =
      TrainLever(*problem, config, {.replace = [&] { return MakeLeverRule(config); }});
  EXPECT_EQ(again.decisions.back().warning, far.decisions.back().warning);
}

// How many decades above its start a race comes to where every larger stepsize is better, by the length
// of the run: what docs/algorithms/lever.md says.
TEST(LeverRuleTest, TheReachOfTheRaceIsWhatThePageSays) {
  const std::vector<std::pair<uint64_t, double>> reach = {
      {320, 1.5}, {400, 2.5}, {480, 4.5}, {560, 6.5}, {640, 10.5}};
  for (const auto& [rounds, decades] : reach) {
    LeverConfig config = Raw(rounds, 1e-20);
    config.momentum = true;
    auto rule = MakeLeverRule(config);
    double gamma = 0, largest = 0;
    for (uint64_t step = 0; gamma == 0;) {
      const std::vector<WorkerScalars> workers = {
          {.loss = 30 - std::log10(std::max(largest, 1e-20)) * static_cast<double>(step + 1)}};
      const StepsizeDecision decision =
          rule->Decide({.ahead = {.data_step = DataStep(step)}, .workers = workers});
      if (decision.main_round) gamma = double{decision.gamma};
      largest = double{decision.gamma};
      step = decision.kind == CommitKind::kRewind ? 0 : step + 1;
    }
    EXPECT_NEAR(std::log10(gamma / 1e-20 / LeverKappa(true, false, 1, 1)), decades, 1e-3) << rounds;
  }
}

TEST(LeverRuleTest, AFailedRaceStaysFailedWhenItIsRestored) {
  auto rule = MakeLeverRule(Raw(4000));
  double gamma = 0;
  for (uint64_t step = 0; rule->failure().ok() && rule->race().rounds < 1000;) {
    const std::vector<WorkerScalars> workers = {{.loss = 3 + gamma * static_cast<double>(step)}};
    const StepsizeDecision decision =
        rule->Decide({.ahead = {.data_step = DataStep(step)}, .x0_max_abs = 1, .workers = workers});
    const bool step_taken = decision.kind == CommitKind::kStep;
    step = step_taken ? step + 1 : 0;
    gamma = step_taken ? double{decision.gamma} : 0;
  }
  ASSERT_EQ(rule->failure().code(), absl::StatusCode::kAborted);
  auto again = MakeLeverRule(Raw(4000));
  ASSERT_TRUE(again->Restore(rule->Save()).ok());
  EXPECT_EQ(again->failure(), rule->failure());
  EXPECT_TRUE(again->race().over);
}

TEST(LeverRuleTest, TheLogSaysHowEachTrialEnded) {
  const auto problem = toy::Logistic();
  const toy::Result result = TrainLever(*problem, Raw(640), {});
  for (size_t i = 0; i < result.race_rounds; ++i) {
    if (result.decisions[i].kind != CommitKind::kRewind) continue;
    EXPECT_THAT(result.decisions[i].reason, HasSubstr("lever: trial ")) << i;
    EXPECT_THAT(result.decisions[i].reason, HasSubstr(" at ")) << i;
  }
  EXPECT_THAT(result.decisions[result.race_rounds - 1].reason, HasSubstr("; the race chose "));
}

TEST(LeverRuleTest, RestoredBeforeEveryRoundItDecidesTheSame) {
  const auto problem = toy::Logistic();
  for (const LeverForm form : {LeverForm::kFull, LeverForm::kLite}) {
    LeverConfig config = Raw(640);
    config.form = form;
    const toy::Result once = TrainLever(*problem, config, {});
    const toy::Result again =
        TrainLever(*problem, config, {.replace = [&] { return MakeLeverRule(config); }});
    EXPECT_EQ(Gammas(once), Gammas(again));
    EXPECT_EQ(once.x, again.x);
  }
}

TEST(LeverRuleTest, ALyingOrSilentWorkerOfFiveDoesNotMoveTheStepsize) {
  const auto problem = toy::Logistic();
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  const toy::Options honest{.workers = 5, .momentum = 0.9};
  const toy::Result expected = TrainLever(*problem, Momentum(640), honest);
  const std::vector<std::function<void(Round, WorkerScalars*)>> lies = {
      [&](Round, WorkerScalars* s) { s->loss = nan; },
      [&](Round, WorkerScalars* s) {
        for (double& value : s->wanted) value = nan;
      },
      [&](Round, WorkerScalars* s) {
        for (double& value : s->wanted) value = inf;
      },
      [](Round round, WorkerScalars* s) {
        s->loss = round.value() % 2 == 0 ? 1e12 : -1e12;
        s->g_l2_squared = 1e200;
        for (double& value : s->wanted) value = 1e150;
      },
      [](Round, WorkerScalars* s) {  // the smaller the step, the better
        s->loss = 1 / (1 + std::abs(s->loss));
        if (!s->wanted.empty()) s->wanted[0] = -std::abs(s->wanted[0]) * 100;
      }};
  for (size_t i = 0; i < lies.size(); ++i) {
    toy::Options options = honest;
    options.tamper = [&](Round round, Share share, WorkerScalars* s) {
      if (share == Share(3)) lies[i](round, s);
    };
    const toy::Result lied = TrainLever(*problem, Momentum(640), options);
    ASSERT_TRUE(lied.status.ok()) << lied.status;
    // Its ballots count as before; what moves is what its scalars would have added.
    std::printf("lie %d: first %.3f, last %.3f of the honest one\n", static_cast<int>(i),
                static_cast<double>(FirstMain(lied) / FirstMain(expected)),
                LastScale(lied) / LastScale(expected));
    EXPECT_NEAR(std::log(FirstMain(lied) / FirstMain(expected)), 0, 0.3) << i;
    EXPECT_NEAR(std::log(LastScale(lied) / LastScale(expected)), 0, 0.05) << i;
    EXPECT_NEAR(lied.loss / expected.loss, 1, 0.02) << i;
  }
}

// The worst that a liar can say without being found out: that all steps were as much too long, or too
// short, as they can be.
TEST(LeverRuleTest, ALiarOfFiveWhomNothingGivesAwayIsBounded) {
  const auto problem = toy::Logistic();
  const toy::Result expected = TrainLever(*problem, Momentum(640), {.workers = 5, .momentum = 0.9});
  for (const double lie : {-0.99, 0.99}) {
    toy::Options options{.workers = 5, .momentum = 0.9};
    options.tamper = [lie](Round, Share share, WorkerScalars* s) {
      if (share != Share(3) || s->wanted.empty()) return;
      s->wanted[0] = lie * std::sqrt(s->g_l2_squared) * s->wanted[1];
    };
    const toy::Result lied = TrainLever(*problem, Momentum(640), options);
    std::printf("lie %.2f: s %.3e, honest %.3e; loss %.5f, honest %.5f\n", lie, LastScale(lied),
                LastScale(expected), lied.loss, expected.loss);
    // docs/algorithms/README.md has these.
    EXPECT_NEAR(LastScale(lied) / LastScale(expected), 1, 0.08) << lie;
    EXPECT_NEAR(lied.loss / expected.loss, 1, 0.002) << lie;
  }
}

TEST(LeverRuleTest, WorkersComeAndGoEveryFewRoundsAndTheRunEndsAsWell) {
  const auto problem = toy::Logistic();
  const toy::Result steady = TrainLever(*problem, Raw(640), {});
  // One of four is away at any time, another every five rounds.
  const toy::Result churn = TrainLever(
      *problem, Raw(640),
      {.present = [](Round round, Share share) { return round.value() / 5 % 4 != share.value(); }});
  ASSERT_TRUE(churn.status.ok()) << churn.status;
  EXPECT_NEAR(churn.loss / steady.loss, 1, 0.05);
}

TEST(LeverRuleTest, ARoundWithoutAVerdictEndsATrialAndNotTheRace) {
  const auto problem = toy::Logistic();
  const toy::Result result = TrainLever(
      *problem, Raw(640), {.without_verdict = [](Round round) { return round.value() == 20; }});
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.decisions[20].kind, CommitKind::kRewind);
  EXPECT_EQ(result.decisions[20].next_data_step, DataStep(0));
  EXPECT_FALSE(result.decisions[20].main_round);
}

TEST(LeverRuleTest, WhereNothingLowersTheLossTheRunEndsAndSaysSo) {
  class Hopeless final : public toy::Problem {
   public:
    std::vector<double> Start() const override { return {1, 1}; }
    double Gradient(const std::vector<double>& x, Share, DataStep,
                    std::vector<double>* g) const override {
      *g = {1, -1};  // the wrong way
      return Loss(x);
    }
    double Loss(const std::vector<double>& x) const override { return 3 - x[0] + x[1]; }
  };
  const toy::Result result = TrainLever(Hopeless(), Raw(4000), {});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(result.decisions.back().kind, CommitKind::kRewind) << "what is left is x_0";
  EXPECT_EQ(result.x, Hopeless().Start());
  EXPECT_THAT(result.status.message(), HasSubstr("no stepsize that lowers the training loss"));
  EXPECT_LE(result.race_rounds, 1000u);
}

TEST(LeverRuleTest, WhatItsFlagsCannotGiveIsNotRestored) {
  auto with_race = MakeLeverRule(Raw(640));
  auto without = MakeLeverRule({.race = false, .main_rounds = 640});
  const std::string fresh = without->Save();
  EXPECT_EQ(without->Restore(with_race->Save()).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(without->Save(), fresh);
  EXPECT_EQ(with_race->Restore("nonsense").code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace signvote
