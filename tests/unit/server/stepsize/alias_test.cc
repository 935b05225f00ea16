#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "server/stepsize/stepsize_rule.h"

namespace signvote {
namespace {

using testing::HasSubstr;

WorkerScalars Worker(double loss, std::optional<double> probe_l1,
                     std::optional<double> prev_inner = {}) {
  WorkerScalars s;
  s.loss = loss;
  s.g_l1 = 1;
  s.g_l2_squared = 1;
  s.probe_l1 = probe_l1;
  s.prev_inner = prev_inner;
  return s;
}

class Driver {
 public:
  explicit Driver(const AliasConfig& config) : rule_(MakeAliasRule(config)) {}
  StepsizeDecision Next(const std::vector<WorkerScalars>& workers, double x0 = 0.5,
                        double scale = 1) {
    return rule_->Decide({.round = Round(round_++),
                          .rounds_max = 100,
                          .x0_max_abs = x0,
                          .step_scale_max = scale,
                          .workers = workers});
  }

 private:
  std::unique_ptr<StepsizeRule> rule_;
  uint64_t round_ = 0;
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

TEST(AliasRuleTest, AProbeInEveryKthRoundCountsKTimes) {
  Driver every({}), third({.probe_every = 3});
  auto rule = MakeAliasRule({.probe_every = 3});
  std::vector<uint64_t> probes;
  for (uint64_t t = 0; t < 10; ++t) {
    if (rule->WantsProbe(Round(t))) probes.push_back(t);
  }
  EXPECT_EQ(probes, (std::vector<uint64_t>{1, 4, 7}));
  every.Next({Worker(1, {})});
  third.Next({Worker(1, {})});
  EXPECT_EQ(third.Next({Worker(1, 1e-3)}).gamma, every.Next({Worker(1, 3e-3)}).gamma);
  // What comes unasked is not used.
  const float before = third.Next({Worker(1, 5.0)}).gamma;
  EXPECT_EQ(third.Next({Worker(1, 5.0)}).gamma, before);
}

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

}  // namespace
}  // namespace signvote
