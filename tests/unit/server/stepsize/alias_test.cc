#include "server/stepsize/alias.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/stepsize/rule_state.h"

namespace signvote {
namespace {

using testing::HasSubstr;

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
const std::vector<ScalarKind> kAsked = {ScalarKind::kProbeL1, ScalarKind::kPrevInner};

WorkerScalars Worker(double loss, std::optional<double> probe_l1,
                     std::optional<double> prev_inner = {}) {
  WorkerScalars s{.loss = loss, .g_l1 = 1, .g_l2_squared = 1};
  s.wanted = {probe_l1.value_or(kUnknown), prev_inner.value_or(kUnknown)};
  return s;
}

// Of runs so short that they start within one round, unless it is told how long they are.
class Driver {
 public:
  explicit Driver(const AliasConfig& config, uint64_t main_rounds_max = 39)
      : rule_(MakeAliasRule(config)), main_rounds_max_(main_rounds_max) {}
  StepsizeDecision Next(const std::vector<WorkerScalars>& workers, double x0 = 0.5,
                        double scale = 1) {
    const RoundAhead ahead{.round = Round(7 + rounds_), .main_rounds = rounds_};
    ++rounds_;
    return rule_->Decide({.ahead = ahead,
                          .main_rounds_max = main_rounds_max_,
                          .x0_max_abs = x0,
                          .step_scale_max = scale,
                          .asked = kAsked,
                          .workers = workers});
  }
  // What the next `rounds` rounds decide, each with the same workers.
  std::vector<StepsizeDecision> Repeat(uint64_t rounds, const std::vector<WorkerScalars>& workers) {
    std::vector<StepsizeDecision> decisions;
    for (uint64_t t = 0; t < rounds; ++t) decisions.push_back(Next(workers));
    return decisions;
  }
  StepsizeRule& rule() { return *rule_; }
  // Another process takes the run up.
  void Restart(const AliasConfig& config) {
    auto fresh = MakeAliasRule(config);
    ASSERT_TRUE(fresh->Restore(rule_->Save()).ok());
    rule_ = std::move(fresh);
  }

 private:
  std::unique_ptr<StepsizeRule> rule_;
  const uint64_t main_rounds_max_;
  uint64_t rounds_ = 0;
};

TEST(AliasRuleTest, TheFirstStepIsRelativeToTheParameters) {
  EXPECT_EQ(Driver({}).Next({Worker(1, {})}, 0.5).gamma, 1e-5f);
  EXPECT_EQ(Driver({}).Next({Worker(1, {})}, 40).gamma, static_cast<float>(4e-4));
}

TEST(AliasRuleTest, OptionTwoDividesTheGapByTheAccumulatedSmoothness) {
  Driver rule({.option = AliasOption::kOptionII, .f_min = 0.5});
  rule.Next({Worker(4.5, {})});
  const auto second = rule.Next({Worker(3, 2e-4)});
  double eta = 2e-4 / double{1e-5f};
  EXPECT_EQ(second.gamma, static_cast<float>(std::sqrt(4.0 / eta)));
  const auto third = rule.Next({Worker(2, 0.25)});
  eta += 0.25 / double{second.gamma};
  EXPECT_EQ(third.gamma, static_cast<float>(std::sqrt(4.0 / eta)));
  EXPECT_THAT(third.reason, HasSubstr("eta="));
}

TEST(AliasRuleTest, OptionOneUsesTheLargestCertifiedDecrease) {
  Driver rule({.option = AliasOption::kOptionI, .d0 = 1e-6});
  rule.Next({Worker(4, {})});
  const auto second = rule.Next({Worker(3, 1e-4, 0.0)});
  double eta = 1e-4 / double{1e-5f};
  EXPECT_EQ(second.gamma, static_cast<float>(std::sqrt(1e-6 / eta)));
  const auto third = rule.Next({Worker(3, 0.0, 10.0)});
  const double d = double{second.gamma} * 10;
  EXPECT_EQ(third.gamma, static_cast<float>(std::sqrt(d / eta)));
  // A negative product lowers the sum, not the maximum.
  EXPECT_EQ(rule.Next({Worker(3, 0.0, -5.0)}).gamma, third.gamma);
}

TEST(AliasRuleTest, TheStepIsMeasuredWithTheLargestScale) {
  Driver one({}), four({});
  one.Next({Worker(1, {})}, 1, 1);
  four.Next({Worker(1, {})}, 1, 4);
  const float a = one.Next({Worker(1, 0.5)}, 1, 1).gamma;
  const float b = four.Next({Worker(1, 0.5)}, 1, 4).gamma;
  EXPECT_EQ(b, 2 * a);
}

TEST(AliasRuleTest, TheStepsizeIsKeptWhileNoChangeOfTheGradientWasSeen) {
  Driver rule({});
  rule.Next({Worker(1, {})});
  EXPECT_EQ(rule.Next({Worker(1, {})}).gamma, 1e-5f);
  const auto zero = rule.Next({Worker(1, 0.0)});
  EXPECT_EQ(zero.gamma, 1e-5f);
  EXPECT_THAT(zero.reason, HasSubstr("eta=0: kept"));
}

TEST(AliasRuleTest, WithoutScalarsTheLastStepsizeIsKept) {
  Driver rule({});
  EXPECT_EQ(rule.Next({}).gamma, 1e-5f);
  rule.Next({Worker(2, 1e-4)});
  const float last = rule.Next({Worker(2, 1e-1)}).gamma;
  const auto kept = rule.Next({});
  EXPECT_EQ(kept.gamma, last);
  EXPECT_THAT(kept.reason, HasSubstr("no scalars: kept"));
}

TEST(AliasRuleTest, TheStartingLossIsThatOfTheFirstRoundWithOne) {
  Driver rule({});
  rule.Next({});
  const auto decision = rule.Next({Worker(9, 1e-5)});
  EXPECT_EQ(decision.gamma, static_cast<float>(std::sqrt(9.0 / (1e-5 / double{1e-5f}))));
  const auto next = rule.Next({Worker(1, 0.0)});
  EXPECT_EQ(next.gamma, decision.gamma);
}

TEST(AliasRuleTest, AGapThatIsNotPositiveKeepsTheStepsizeAndSaysSo) {
  Driver rule({.f_min = 3});
  rule.Next({Worker(2, {})});
  const auto kept = rule.Next({Worker(2, 1e-3)});
  EXPECT_EQ(kept.gamma, 1e-5f);
  EXPECT_THAT(kept.reason, HasSubstr("num=-1 is not positive: kept"));
}

double Eta(const StepsizeDecision& decision) { return decision.state.front().second; }

TEST(AliasRuleTest, AProbeInEveryKthRoundStandsForTheStepsSinceTheOneBefore) {
  auto rule = MakeAliasRule({.probe_every = 3});
  std::vector<uint64_t> probes;
  for (uint64_t t = 0; t < 10; ++t) {
    const RoundAhead ahead{.round = Round(2 * t), .main_rounds = t};
    const std::vector<ScalarKind> wanted = rule->Wanted(ahead);
    if (rule->WantedOf(ahead, Share(0), wanted.size()) == 0) continue;
    EXPECT_EQ(wanted, std::vector{ScalarKind::kProbeL1});
    probes.push_back(t);
  }
  EXPECT_EQ(probes, (std::vector<uint64_t>{1, 4, 7}));
  Driver third({.probe_every = 3});
  third.Next({Worker(1, {})});
  // One step is behind the first probe.
  double eta = 1e-3 / double{1e-5f};
  const auto first = third.Next({Worker(1, 1e-3)});
  EXPECT_EQ(Eta(first), eta);
  // What comes unasked is not used.
  EXPECT_EQ(Eta(third.Next({Worker(1, 5.0)})), eta);
  EXPECT_EQ(Eta(third.Next({Worker(1, 5.0)})), eta);
  eta += 3 * (0.25 / double{first.gamma});
  EXPECT_EQ(Eta(third.Next({Worker(1, 0.25)})), eta);
}

TEST(AliasRuleTest, AProbeStandsForThoseThatWereMissedBeforeIt) {
  for (const uint64_t k : {1u, 2u, 5u}) {
    Driver missed({.probe_every = k});
    missed.Next({Worker(1, {})});
    const float gamma = missed.Next({Worker(1, 1e-3)}).gamma;
    const double eta = 1e-3 / double{1e-5f};
    // Nobody's scalars, one who cannot tell, one whose probe is none: whatever the reason, 2·k steps
    // go by without one.
    for (uint64_t t = 0; t + 1 < 3 * k; ++t) {
      const std::vector<std::vector<WorkerScalars>> without = {
          {}, {Worker(1, {})}, {Worker(1, -1.0)}};
      EXPECT_EQ(Eta(missed.Next(without[t % 3])), eta) << k;
    }
    EXPECT_EQ(Eta(missed.Next({Worker(1, 0.5)})),
              eta + static_cast<double>(3 * k) * (0.5 / double{gamma}))
        << k;
  }
}

TEST(AliasRuleTest, AProbeThatWouldOverflowIsMissedAndNotLost) {
  Driver rule({});
  rule.Next({Worker(1, {})});
  EXPECT_EQ(Eta(rule.Next({Worker(1, std::numeric_limits<double>::max())})), 0);
  EXPECT_EQ(Eta(rule.Next({Worker(1, 1e-3)})), 2 * (1e-3 / double{1e-5f}));
}

// ---- the start ----------------------------------------------------------------------------------

TEST(AliasRuleTest, TheStartIsATwentiethOfTheRunAndOneToEightRounds) {
  const std::vector<std::pair<uint64_t, size_t>> starts = {
      {0, 8}, {1, 1}, {19, 1}, {39, 1}, {40, 2}, {159, 7}, {160, 8}, {100000, 8}};
  for (const AliasOption option : {AliasOption::kOptionI, AliasOption::kOptionII}) {
    for (const auto& [main_rounds_max, rounds] : starts) {
      Driver rule({.option = option}, main_rounds_max);
      size_t kept = 0;
      while (kept < 20 && rule.Next({Worker(1, 1e-3, 1.0)}).gamma == 1e-5f) ++kept;
      EXPECT_EQ(kept, rounds) << main_rounds_max;
    }
  }
}

TEST(AliasRuleTest, TheStartingLossIsTheMeanOverTheStart) {
  Driver rule({.f_min = 1}, 80);
  for (const double loss : {9.0, 4.0, 8.0, 7.0}) {
    const auto kept = rule.Next({Worker(loss, 1e-3)});
    EXPECT_EQ(kept.gamma, 1e-5f);
    EXPECT_EQ(kept.warning, "");
  }
  const auto after = rule.Next({Worker(100, 1e-3)});
  EXPECT_EQ(after.gamma, static_cast<float>(std::sqrt(6.0 / Eta(after))));
  EXPECT_NEAR(Eta(after), 4 * 1e-3 / double{1e-5f}, 1e-10);
  // No later loss changes it.
  const auto later = rule.Next({Worker(1000, 0.0)});
  EXPECT_EQ(later.gamma, after.gamma);
}

TEST(AliasRuleTest, RoundsWithoutALossAreLeftOutOfTheStartingLoss) {
  Driver rule({}, 80);
  rule.Next({});
  rule.Next({Worker(2, 1e-3)});
  rule.Next({Worker(kUnknown, 1e-3), Worker(std::numeric_limits<double>::infinity(), 1e-3)});
  rule.Next({Worker(4, 1e-3)});
  const auto after = rule.Next({Worker(50, 1e-3)});
  EXPECT_EQ(after.state.back(), (std::pair<std::string, double>{"f0", 3.0}));
  EXPECT_EQ(after.gamma, static_cast<float>(std::sqrt(3.0 / Eta(after))));
}

TEST(AliasRuleTest, AStartWithoutAnyLossLastsUntilTheFirstOne) {
  Driver rule({}, 80);
  for (const auto& kept : rule.Repeat(6, {Worker(kUnknown, 1e-3)})) EXPECT_EQ(kept.gamma, 1e-5f);
  const auto first = rule.Next({Worker(5, 1e-3)});
  EXPECT_EQ(first.gamma, static_cast<float>(std::sqrt(5.0 / Eta(first))));
}

TEST(AliasRuleTest, RoundsThatMoveNothingDoNotShortenTheStart) {
  Driver rule({}, 80);
  for (int t = 0; t < 4; ++t) {
    EXPECT_EQ(rule.Next({Worker(3, 1e-3)}).gamma, 1e-5f);
    rule.rule().DecideWithoutBallot({.ahead = {.main_rounds = 2}, .main_rounds_max = 80});
  }
  EXPECT_GT(rule.Next({Worker(3, 1e-3)}).gamma, 1e-5f);
}

TEST(AliasRuleTest, LossesWhoseSumIsNoNumberAreLeftOut) {
  Driver rule({}, 80);
  rule.Next({Worker(1e308, {})});
  for (int t = 0; t < 3; ++t) rule.Next({Worker(1e308, 1e300)});
  EXPECT_EQ(rule.Next({Worker(1, 1e300)}).state.back(),
            (std::pair<std::string, double>{"f0", 1e308}));
}

// ---- going on from a run ------------------------------------------------------------------------

TEST(AliasRuleTest, WhatIsGivenAsEtaIsThereFromTheStart) {
  Driver rule({.eta0 = 400});
  EXPECT_EQ(Eta(rule.Next({Worker(4, {})})), 400);
  EXPECT_EQ(rule.Next({Worker(4, {})}).gamma, 0.1f);
  const auto probed = rule.Next({Worker(4, 0.5)});
  EXPECT_EQ(Eta(probed), 400 + 2 * (0.5 / double{0.1f}));
}

TEST(AliasRuleTest, AModelThatIsTrainedAlreadyGoesOnAtMostAtItsStepsize) {
  // The fault that this ends: from a trained model the first probe alone took γ from 1e-5 to 1.2e-3.
  const float before = 2.5e-4f;
  const WorkerScalars trained = Worker(2.25, 15.0);
  Driver fresh({}), on({.resumed_stepsize = before});
  EXPECT_GT(fresh.Repeat(2, {trained}).back().gamma, 1.2e-3f);
  const std::vector<StepsizeDecision> decisions = on.Repeat(200, {trained});
  EXPECT_EQ(decisions[0].gamma, 1e-5f);
  EXPECT_EQ(Eta(decisions[1]), 2.25 / (double{before} * double{before}) + 15.0 / double{1e-5f});
  EXPECT_EQ(decisions[1].gamma, static_cast<float>(std::sqrt(2.25 / Eta(decisions[1]))));
  for (size_t t = 1; t < decisions.size(); ++t) EXPECT_LE(decisions[t].gamma, before) << t;
  EXPECT_GT(decisions.back().gamma, 0.8f * before);
}

TEST(AliasRuleTest, WithoutAnyProbeARunGoesOnExactlyAtTheStepsizeOfTheOneBefore) {
  for (const float before : {3e-4f, 1e-38f, 1e-45f, 3e38f}) {
    Driver rule({.f_min = 0.5, .resumed_stepsize = before}, 80);
    const std::vector<StepsizeDecision> decisions = rule.Repeat(7, {Worker(2, {})});
    EXPECT_EQ(decisions[3].gamma, 1e-5f);
    EXPECT_EQ(decisions[4].gamma, before);
    EXPECT_EQ(decisions[6].gamma, before);
  }
}

TEST(AliasRuleTest, OptionOneDoesNotPassTheStepsizeOfTheRunBeforeEither) {
  // d is a lower bound of f(x_0) − f(x*): it may come close to the loss, and no further.
  const float before = 1e-3f;
  Driver rule({.option = AliasOption::kOptionI, .resumed_stepsize = before});
  rule.Next({Worker(2, {})});
  float largest = 0;
  double a = 0;
  for (int t = 0; t < 100; ++t) {
    const float gamma = rule.Next({Worker(2, 1e-9, a < 1.9 ? 100.0 : 0.0)}).gamma;
    a += double{gamma} * 100;
    largest = std::max(largest, gamma);
  }
  EXPECT_GT(largest, 0.9f * before);
  EXPECT_LE(largest, before);
}

TEST(AliasRuleTest, ALossBelowItsBoundLeavesNothingToGoOnFrom) {
  Driver rule({.f_min = 3, .resumed_stepsize = 1e-4f});
  EXPECT_EQ(Eta(rule.Repeat(3, {Worker(2, {})}).back()), 0);
}

// ---- what a person is told ----------------------------------------------------------------------

TEST(AliasRuleTest, WithoutAWorkerThatProbesAPersonIsWarnedAndToldWhatHelps) {
  for (const uint64_t k : {1u, 4u, 1000u}) {
    for (const uint64_t main_rounds_max : {0u, 10u, 100000u}) {
      Driver rule({.probe_every = k}, main_rounds_max);
      const std::vector<StepsizeDecision> decisions = rule.Repeat(20, {Worker(2, {})});
      for (size_t t = 0; t < 8; ++t) EXPECT_EQ(decisions[t].warning, "") << t;
      EXPECT_THAT(decisions[8].warning, HasSubstr("no worker's probe has come for 8 rounds"));
      EXPECT_THAT(decisions[8].warning, HasSubstr("choose --rule fixed"));
      EXPECT_EQ(decisions[19].warning, decisions[8].warning);
      EXPECT_EQ(decisions[19].gamma, 1e-5f);
    }
  }
}

TEST(AliasRuleTest, TheWarningEndsWithTheFirstProbeThatComes) {
  Driver rule({});
  EXPECT_NE(rule.Repeat(9, {Worker(2, {})}).back().warning, "");
  EXPECT_EQ(rule.Next({Worker(2, 1e-3)}).warning, "");
  EXPECT_EQ(rule.Repeat(7, {Worker(2, {})}).back().warning, "");
  EXPECT_NE(rule.Next({}).warning, "");
}

TEST(AliasRuleTest, TheWarningIsOneSentenceAlsoWhereTheStepsizeGoesOnChanging) {
  Driver rule({.option = AliasOption::kOptionI, .eta0 = 1});
  const std::vector<StepsizeDecision> decisions = rule.Repeat(20, {Worker(2, {}, 5.0)});
  EXPECT_NE(decisions[19].gamma, decisions[10].gamma);
  EXPECT_NE(decisions[10].warning, "");
  EXPECT_EQ(decisions[19].warning, decisions[10].warning);
}

TEST(AliasRuleTest, RareProbesAreWaitedForTwice) {
  Driver rule({.probe_every = 30});
  rule.Next({Worker(2, {})});
  rule.Next({Worker(2, 1e-3)});
  const std::vector<StepsizeDecision> decisions = rule.Repeat(60, {Worker(2, {})});
  EXPECT_EQ(decisions[58].warning, "");
  EXPECT_THAT(decisions[59].warning, HasSubstr("for 60 rounds"));
}

TEST(AliasRuleTest, ALowerBoundThatIsNoneIsToldWithItsFlagOnceTheLossIsKnown) {
  Driver rule({.f_min = 3}, 80);
  const std::vector<StepsizeDecision> decisions = rule.Repeat(6, {Worker(2, 1e-3)});
  EXPECT_EQ(decisions[3].warning, "");
  EXPECT_THAT(decisions[4].warning, HasSubstr("the loss at the start, 2, is not above"));
  EXPECT_THAT(decisions[4].warning, HasSubstr("--alias-f-min"));
  EXPECT_EQ(decisions[5].warning, decisions[4].warning);
  Driver one({.option = AliasOption::kOptionI, .f_min = 3});
  EXPECT_EQ(one.Repeat(4, {Worker(2, 1e-3, 1.0)}).back().warning, "");
}

// ---- scalars that are none ----------------------------------------------------------------------

TEST(AliasRuleTest, ALiarAmongFiveDoesNotWreckTheStepsize) {
  Driver honest({}), attacked({});
  const std::vector<WorkerScalars> four(4, Worker(2, 1e-3));
  std::vector<WorkerScalars> five = four;
  five.push_back(Worker(1e30, 1e30));
  honest.Next(four);
  attacked.Next(five);
  EXPECT_EQ(attacked.Next(five).gamma, honest.Next(four).gamma);
}

TEST(AliasRuleTest, AnOverflowKeepsTheLastStepsize) {
  Driver rule({});
  rule.Next({Worker(1e300, {})});
  const auto kept = rule.Next({Worker(1, 1e-300)});
  EXPECT_EQ(kept.gamma, 1e-5f);
  EXPECT_THAT(kept.reason, HasSubstr("no fp32 stepsize: kept"));
  EXPECT_EQ(rule.Next({Worker(1, std::numeric_limits<double>::max())}).gamma, 1e-5f);
}

TEST(AliasRuleTest, ParametersThatAreNotFiniteCountAsSmall) {
  for (const double x0 : {kUnknown, std::numeric_limits<double>::infinity()}) {
    EXPECT_EQ(Driver({}).Next({Worker(1, {})}, x0).gamma, 1e-5f);
  }
}

TEST(AliasRuleTest, AGapOfZeroIsNotPositive) {
  Driver rule({.f_min = 2});
  rule.Next({Worker(2, {})});
  const auto kept = rule.Next({Worker(2, 1e-3)});
  EXPECT_EQ(kept.gamma, 1e-5f);
  EXPECT_THAT(kept.reason, HasSubstr("num=0 is not positive: kept"));
}

TEST(AliasRuleTest, AStepsizeThatVanishesIsNotTaken) {
  Driver rule({.f_min = 0});
  rule.Next({Worker(1e-300, {})});
  const auto kept = rule.Next({Worker(1, 1e300)});
  EXPECT_EQ(kept.gamma, 1e-5f);
  EXPECT_THAT(kept.reason, HasSubstr("no fp32 stepsize: kept"));
}

TEST(AliasRuleTest, AProbeBelowZeroIsNotUsed) {
  Driver rule({});
  rule.Next({Worker(1, {})});
  const float before = rule.Next({Worker(1, 1e-3)}).gamma;
  EXPECT_EQ(rule.Next({Worker(1, -1e-4)}).gamma, before);
}

TEST(AliasRuleTest, ADecisionShowsWhatItFollowsFrom) {
  using State = std::vector<std::pair<std::string, double>>;
  Driver one({.option = AliasOption::kOptionI, .d0 = 0.5});
  EXPECT_EQ(one.Next({Worker(4, {})}).state,
            (State{{"eta", 0}, {"num", 0.5}, {"a", 0}, {"f0", 4}}));
  const double gamma = double{1e-5f};
  EXPECT_EQ(one.Next({Worker(3, 1.0, -2.0)}).state,
            (State{{"eta", 1 / gamma}, {"num", 0.5}, {"a", -2 * gamma}, {"f0", 4}}));
  Driver two({.f_min = 1});
  EXPECT_EQ(two.Next({}).state, (State{{"eta", 0}, {"num", 0}}));
  EXPECT_EQ(two.Next({Worker(3, 1.0)}).state, (State{{"eta", 1 / gamma}, {"num", 2}, {"f0", 3}}));
}

TEST(AliasRuleTest, WithoutAStartingLossTheStepsizeIsKept) {
  Driver rule({});
  rule.Next({Worker(kUnknown, {})});
  const auto kept = rule.Next({Worker(kUnknown, 1e-3)});
  EXPECT_EQ(kept.gamma, 1e-5f);
  EXPECT_THAT(kept.reason, HasSubstr("f(x0) unknown: kept"));
}

TEST(AliasRuleTest, OptionOneWantsTheInnerProductInEveryRoundButTheFirst) {
  auto rule = MakeAliasRule({.option = AliasOption::kOptionI, .probe_every = 2});
  EXPECT_TRUE(rule->Wanted({.round = Round(3), .main_rounds = 0}).empty());
  const std::vector wanted = {ScalarKind::kPrevInner, ScalarKind::kProbeL1};
  for (const uint64_t t : {1u, 2u}) {
    EXPECT_EQ(rule->Wanted({.main_rounds = t}), wanted);
    for (const uint32_t share : {0u, 1u}) {
      EXPECT_EQ(rule->WantedOf({.main_rounds = t}, Share(share), 2), t % 2 == share ? 1u : 2u);
    }
  }
  EXPECT_TRUE(rule->probes());
  EXPECT_FALSE(rule->needs_x0());
}

TEST(AliasRuleTest, ARoundWithoutBallotsChangesNothing) {
  Driver rule({});
  rule.Next({Worker(4, {})});
  const std::string before = rule.rule().Save();
  const StepsizeDecision none = rule.rule().DecideWithoutBallot({.gamma = 0.25f});
  EXPECT_EQ(none.kind, CommitKind::kNone);
  EXPECT_EQ(none.gamma, 0.25f);
  EXPECT_EQ(none.rho, 1.0f);
  EXPECT_FALSE(none.main_round);
  EXPECT_FALSE(none.run_done);
  EXPECT_EQ(rule.rule().Save(), before);
}

TEST(AliasRuleTest, ARestoredRuleDecidesAsTheSavedOneAlsoWithinTheStart) {
  for (const AliasOption option : {AliasOption::kOptionI, AliasOption::kOptionII}) {
    for (const float resumed : {0.0f, 1e-3f}) {
      for (int rounds = 0; rounds < 9; ++rounds) {
        const AliasConfig config{.option = option, .probe_every = 2, .resumed_stepsize = resumed};
        Driver one(config, 100), two(config, 100);
        for (int t = 0; t < rounds; ++t) {
          // Now and then nobody can tell the probe.
          const double probe = t % 4 == 3 ? kUnknown : 1e-3 * t;
          for (Driver* d : {&one, &two}) d->Next({Worker(10 - t, probe, 0.5)});
        }
        const std::string saved = one.rule().Save();
        one.Restart(config);
        EXPECT_EQ(one.rule().Save(), saved);
        for (int t = 0; t < 12; ++t) {
          const double probe = t < 2 ? kUnknown : 3e-3;
          const StepsizeDecision a = one.Next({Worker(2, probe, 0.25)});
          const StepsizeDecision b = two.Next({Worker(2, probe, 0.25)});
          EXPECT_EQ(a.gamma, b.gamma);
          EXPECT_EQ(a.reason, b.reason);
          EXPECT_EQ(a.warning, b.warning);
          EXPECT_EQ(a.state, b.state);
        }
      }
    }
  }
}

TEST(AliasRuleTest, WhatTheRunGoesOnFromIsKeptWithItsState) {
  // Whoever takes the run up need not have the file that it began with.
  Driver rule({.resumed_stepsize = 1e-3f}, 80);
  rule.Repeat(2, {Worker(2, {})});
  rule.Restart({});
  rule.Repeat(2, {Worker(2, {})});
  EXPECT_EQ(rule.Next({Worker(2, {})}).gamma, 1e-3f);
  rule.Restart({});
  EXPECT_EQ(rule.Next({Worker(2, {})}).gamma, 1e-3f);
}

TEST(AliasRuleTest, AStateOfTheFirstVersionIsRefusedInOneSentence) {
  RuleStateWriter writer("alias", 1);
  writer.Add(uint64_t{1});
  for (const double v : {0.5, 1.0, -1.0, 1.0}) writer.Add(v);
  writer.Add(uint64_t{1});
  writer.Add(3.0);
  const absl::Status status = MakeAliasRule({})->Restore(writer.Take());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'alias', version 1, and this run has "
                                                       "'alias', version 4"));
}

TEST(AliasRuleTest, AStateThatTheseFlagsCannotGiveIsRefusedAndChangesNothing) {
  for (const AliasConfig& more : {AliasConfig{.d0 = 1}, AliasConfig{.eta0 = 1}}) {
    auto small = MakeAliasRule({});
    auto large = MakeAliasRule(more);
    const std::string before = large->Save();
    EXPECT_EQ(large->Restore(small->Save()).code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(large->Save(), before);
    EXPECT_TRUE(small->Restore(large->Save()).ok());
  }
}

TEST(AliasRuleTest, EverySavedFieldIsChecked) {
  struct Fields {
    uint64_t started = 1;
    double gamma = 0.5, eta = 1, a = -1, d = 1;
    uint64_t steps_since_probe = 3, losses = 2;
    double loss_sum = 6;
    uint64_t measured = 1;
    double resumed = 0;
    uint64_t seen = 0;  // shares of which something is kept
  };
  const auto restore = [](const Fields& f) {
    RuleStateWriter writer("alias", 4);
    writer.Add(f.started);
    for (const double v : {f.gamma, f.eta, f.a, f.d}) writer.Add(v);
    writer.Add(f.steps_since_probe);
    writer.Add(f.losses);
    writer.Add(f.loss_sum);
    writer.Add(f.measured);
    writer.Add(f.resumed);
    writer.Add(f.seen);
    return MakeAliasRule({})->Restore(writer.Take()).code();
  };
  const Fields fresh{.started = 0,
                     .gamma = 0,
                     .eta = 0,
                     .a = 0,
                     .d = 1e-6,
                     .steps_since_probe = 0,
                     .losses = 0,
                     .loss_sum = 0,
                     .measured = 0};
  const auto but = [](Fields fields, auto change) {
    change(fields);
    return fields;
  };
  constexpr auto kFine = absl::StatusCode::kOk;
  constexpr auto kLost = absl::StatusCode::kDataLoss;
  EXPECT_EQ(restore({}), kFine);
  EXPECT_EQ(restore(fresh), kFine);
  EXPECT_EQ(restore(but(fresh, [](Fields& f) { f.resumed = 0.25; })), kFine);
  EXPECT_EQ(restore({.gamma = double{std::numeric_limits<float>::max()}}), kFine);
  EXPECT_EQ(restore({.seen = 1}), kLost);
  EXPECT_EQ(restore({.started = 2}), kLost);
  EXPECT_EQ(restore(but(fresh, [](Fields& f) { f.gamma = 0.5; })), kLost);
  EXPECT_EQ(restore(but(fresh, [](Fields& f) { f.steps_since_probe = 1; })), kLost);
  EXPECT_EQ(restore(but(fresh, [](Fields& f) { f.losses = 1; })), kLost);
  EXPECT_EQ(restore(but(fresh, [](Fields& f) { f.loss_sum = 1; })), kLost);
  EXPECT_EQ(restore(but(fresh, [](Fields& f) { f.measured = 1; })), kLost);
  EXPECT_EQ(restore({.gamma = 0}), kLost);
  EXPECT_EQ(restore({.gamma = 0.1}), kLost);  // no fp32 number
  EXPECT_EQ(restore({.gamma = 1e300}), kLost);
  EXPECT_EQ(restore({.gamma = kUnknown}), kLost);
  EXPECT_EQ(restore({.eta = -1}), kLost);
  EXPECT_EQ(restore({.eta = kUnknown}), kLost);
  EXPECT_EQ(restore({.a = kUnknown}), kLost);
  EXPECT_EQ(restore({.d = 1e-7}), kLost);
  EXPECT_EQ(restore({.d = std::numeric_limits<double>::infinity()}), kLost);
  EXPECT_EQ(restore({.loss_sum = kUnknown}), kLost);
  EXPECT_EQ(restore({.measured = 2}), kLost);
  EXPECT_EQ(restore({.measured = 0, .resumed = 0.1}), kLost);  // no fp32 number
  EXPECT_EQ(restore({.measured = 0, .resumed = -0.5}), kLost);
  EXPECT_EQ(restore({.measured = 0, .resumed = kUnknown}), kLost);
  EXPECT_EQ(restore({.measured = 1, .resumed = 0.5}), kLost);  // it is in eta by then
}

}  // namespace
}  // namespace signvote
