#include "server/stepsize/fixed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "server/stepsize/rule_state.h"

namespace signvote {
namespace {

constexpr uint64_t kRounds = 100;

std::vector<float> Gammas(const FixedConfig& config, uint64_t rounds = kRounds) {
  auto rule = MakeFixedRule(config);
  std::vector<float> gammas;
  for (uint64_t t = 0; t < rounds; ++t) {
    gammas.push_back(rule->Decide({.ahead = {.round = Round(3 * t), .main_rounds = t},
                                   .main_rounds_max = kRounds,
                                   .workers = {}})
                         .gamma);
  }
  return gammas;
}

TEST(FixedRuleTest, AConstantScheduleNeverMoves) {
  for (const float gamma : Gammas({.gamma0 = 0.01})) EXPECT_EQ(gamma, 0.01f);
}

TEST(FixedRuleTest, TheWarmUpRisesLinearlyToGamma0) {
  const auto gammas = Gammas({.gamma0 = 1, .schedule = {.warmup_rounds = 10}});
  for (size_t t = 0; t < 10; ++t) EXPECT_FLOAT_EQ(gammas[t], static_cast<float>(t + 1) / 10);
  EXPECT_EQ(gammas[10], 1.0f);
  EXPECT_EQ(gammas[99], 1.0f);
}

TEST(FixedRuleTest, TheCosineFallsFromGamma0ToNearZero) {
  const auto gammas = Gammas({.gamma0 = 2, .schedule = {.kind = ScheduleKind::kCosine}});
  EXPECT_EQ(gammas[0], 2.0f);
  EXPECT_FLOAT_EQ(gammas[50], 1.0f);
  EXPECT_FLOAT_EQ(gammas[25], static_cast<float>(1 + std::cos(std::numbers::pi / 4)));
  EXPECT_GT(gammas[99], 0.0f);
  EXPECT_LT(gammas[99], 1e-3f);
}

TEST(FixedRuleTest, TheCosineStartsAfterTheWarmUp) {
  const auto gammas =
      Gammas({.gamma0 = 1, .schedule = {.kind = ScheduleKind::kCosine, .warmup_rounds = 20}});
  EXPECT_FLOAT_EQ(gammas[20], 1.0f);
  EXPECT_FLOAT_EQ(gammas[60], 0.5f);
}

TEST(FixedRuleTest, TheLinearScheduleLosesTheSameAmountEachRound) {
  const auto gammas = Gammas({.gamma0 = 1, .schedule = {.kind = ScheduleKind::kLinear}});
  for (size_t t = 0; t < kRounds; ++t)
    EXPECT_NEAR(gammas[t], 1 - static_cast<double>(t) / kRounds, 1e-7);
}

TEST(FixedRuleTest, WsdIsFlatAndThenFallsLinearly) {
  const auto gammas =
      Gammas({.gamma0 = 1, .schedule = {.kind = ScheduleKind::kWsd, .warmup_rounds = 5}});
  EXPECT_FLOAT_EQ(gammas[0], 0.2f);
  for (size_t t = 5; t <= 80; ++t) EXPECT_EQ(gammas[t], 1.0f);
  for (size_t t = 80; t < kRounds; ++t)
    EXPECT_FLOAT_EQ(gammas[t], static_cast<float>(kRounds - t) / 20);
}

TEST(FixedRuleTest, RoundsBeyondThePlanKeepTheLastStepsize) {
  const auto gammas = Gammas({.gamma0 = 1, .schedule = {.kind = ScheduleKind::kLinear}}, 120);
  EXPECT_EQ(gammas[119], gammas[99]);
}

TEST(FixedRuleTest, ARunOfUnknownLengthHasOnlyTheWarmUp) {
  auto rule =
      MakeFixedRule({.gamma0 = 1, .schedule = {.kind = ScheduleKind::kLinear, .warmup_rounds = 2}});
  const auto gamma = [&](uint64_t t) {
    return rule->Decide({.ahead = {.main_rounds = t}, .main_rounds_max = 0}).gamma;
  };
  EXPECT_EQ(gamma(0), 0.5f);
  EXPECT_EQ(gamma(1), 1.0f);
  EXPECT_EQ(gamma(1000), 1.0f);
}

TEST(FixedRuleTest, EveryDecisionIsAStepOfTheMainRun) {
  const StepsizeDecision decision = MakeFixedRule({})->Decide({.main_rounds_max = 5});
  EXPECT_EQ(decision.kind, CommitKind::kStep);
  EXPECT_EQ(decision.rho, 1.0f);
  EXPECT_TRUE(decision.main_round);
  EXPECT_FALSE(decision.run_done);
  EXPECT_FALSE(decision.next_data_step.has_value());
}

TEST(FixedRuleTest, ADecisionNamesItsShareOfGamma0) {
  auto rule = MakeFixedRule({.gamma0 = 0.5, .schedule = {.warmup_rounds = 4}});
  const StepsizeDecision decision = rule->Decide({.main_rounds_max = 10});
  EXPECT_EQ(decision.reason, "fixed: 0.25 of 0.5");
  EXPECT_EQ(decision.state, (std::vector<std::pair<std::string, double>>{{"factor", 0.25}}));
}

TEST(FixedRuleTest, AWarmUpAsLongAsTheRunNeverDecays) {
  auto rule =
      MakeFixedRule({.gamma0 = 1, .schedule = {.kind = ScheduleKind::kCosine, .warmup_rounds = 4}});
  for (uint64_t t = 0; t < 6; ++t) {
    EXPECT_EQ(rule->Decide({.ahead = {.main_rounds = t}, .main_rounds_max = 4}).gamma,
              std::min(1.0f, static_cast<float>(t + 1) / 4));
  }
}

TEST(FixedRuleTest, TheDecayOfWsdIsRoundedUpToWholeRounds) {
  auto rule = MakeFixedRule(
      {.gamma0 = 1, .schedule = {.kind = ScheduleKind::kWsd, .decay_fraction = 0.25}});
  const auto gamma = [&](uint64_t t) {
    return rule->Decide({.ahead = {.main_rounds = t}, .main_rounds_max = 10}).gamma;
  };
  EXPECT_EQ(gamma(7), 1.0f);
  EXPECT_FLOAT_EQ(gamma(8), 2.0f / 3);
  EXPECT_FLOAT_EQ(gamma(9), 1.0f / 3);
}

TEST(FixedRuleTest, NeverAsksForAnything) {
  auto rule = MakeFixedRule({});
  EXPECT_TRUE(rule->Wanted({.round = Round(1), .main_rounds = 1}).empty());
  EXPECT_FALSE(rule->probes());
  EXPECT_FALSE(rule->needs_x0());
  EXPECT_EQ(rule->name(), "fixed");
}

TEST(FixedRuleTest, ItsStateIsCheckedThoughItHasNone) {
  auto rule = MakeFixedRule({});
  EXPECT_TRUE(rule->Restore(MakeFixedRule({})->Save()).ok());
  EXPECT_EQ(rule->Restore("").code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(rule->Save(), RuleStateWriter("fixed", 1).Take());
}

}  // namespace
}  // namespace signvote
