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

class Driver {
 public:
  explicit Driver(const AliasConfig& config) : rule_(MakeAliasRule(config)) {}
  StepsizeDecision Next(const std::vector<WorkerScalars>& workers, double x0 = 0.5,
                        double scale = 1) {
    const RoundAhead ahead{.round = Round(7 + rounds_), .main_rounds = rounds_};
    ++rounds_;
    return rule_->Decide({.ahead = ahead,
                          .main_rounds_max = 100,
                          .x0_max_abs = x0,
                          .step_scale_max = scale,
                          .asked = kAsked,
                          .workers = workers});
  }
  StepsizeRule& rule() { return *rule_; }

 private:
  std::unique_ptr<StepsizeRule> rule_;
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

TEST(AliasRuleTest, AProbeInEveryKthRoundCountsKTimes) {
  Driver every({}), third({.probe_every = 3});
  auto rule = MakeAliasRule({.probe_every = 3});
  std::vector<uint64_t> probes;
  for (uint64_t t = 0; t < 10; ++t) {
    const std::vector<ScalarKind> wanted = rule->Wanted({.round = Round(2 * t), .main_rounds = t});
    if (wanted == std::vector{ScalarKind::kProbeL1}) probes.push_back(t);
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
  EXPECT_EQ(rule->Wanted({.main_rounds = 1}), kAsked);
  EXPECT_EQ(rule->Wanted({.main_rounds = 2}), std::vector{ScalarKind::kPrevInner});
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

TEST(AliasRuleTest, ARestoredRuleDecidesAsTheSavedOne) {
  for (const AliasOption option : {AliasOption::kOptionI, AliasOption::kOptionII}) {
    for (int rounds = 0; rounds < 5; ++rounds) {
      Driver one({.option = option}), two({.option = option});
      for (int t = 0; t < rounds; ++t) {
        for (Driver* d : {&one, &two}) d->Next({Worker(4 - t, 1e-3 * t, 0.5)});
      }
      auto fresh = MakeAliasRule({.option = option});
      ASSERT_TRUE(fresh->Restore(one.rule().Save()).ok());
      EXPECT_EQ(fresh->Save(), one.rule().Save());
      ASSERT_TRUE(one.rule().Restore(fresh->Save()).ok());
      for (int t = 0; t < 3; ++t) {
        const StepsizeDecision a = one.Next({Worker(2, 3e-3, 0.25)});
        const StepsizeDecision b = two.Next({Worker(2, 3e-3, 0.25)});
        EXPECT_EQ(a.gamma, b.gamma);
        EXPECT_EQ(a.reason, b.reason);
        EXPECT_EQ(a.state, b.state);
      }
    }
  }
}

TEST(AliasRuleTest, AStateThatTheseFlagsCannotGiveIsRefusedAndChangesNothing) {
  auto small = MakeAliasRule({.option = AliasOption::kOptionI, .d0 = 1e-6});
  auto large = MakeAliasRule({.option = AliasOption::kOptionI, .d0 = 1});
  const std::string before = large->Save();
  EXPECT_EQ(large->Restore(small->Save()).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(large->Save(), before);
}

TEST(AliasRuleTest, EverySavedFieldIsChecked) {
  const auto restore = [](uint64_t started, double gamma, double eta, double a, double d,
                          uint64_t has_f0, double f0) {
    RuleStateWriter writer("alias", 1);
    writer.Add(started);
    for (const double v : {gamma, eta, a, d}) writer.Add(v);
    writer.Add(has_f0);
    writer.Add(f0);
    return MakeAliasRule({})->Restore(writer.Take()).code();
  };
  constexpr auto kLost = absl::StatusCode::kDataLoss;
  EXPECT_EQ(restore(1, 0.5, 1, -1, 1, 1, 3), absl::StatusCode::kOk);
  EXPECT_EQ(restore(0, 0, 0, 0, 1e-6, 0, 0), absl::StatusCode::kOk);
  const double largest = double{std::numeric_limits<float>::max()};
  EXPECT_EQ(restore(1, largest, 1, -1, 1, 1, 3), absl::StatusCode::kOk);
  EXPECT_EQ(restore(2, 0.5, 1, -1, 1, 1, 3), kLost);
  EXPECT_EQ(restore(0, 0.5, 1, -1, 1, 1, 3), kLost);
  EXPECT_EQ(restore(1, 0, 1, -1, 1, 1, 3), kLost);
  EXPECT_EQ(restore(1, 0.1, 1, -1, 1, 1, 3), kLost);  // no fp32 number
  EXPECT_EQ(restore(1, 1e300, 1, -1, 1, 1, 3), kLost);
  EXPECT_EQ(restore(1, kUnknown, 1, -1, 1, 1, 3), kLost);
  EXPECT_EQ(restore(1, 0.5, -1, -1, 1, 1, 3), kLost);
  EXPECT_EQ(restore(1, 0.5, kUnknown, -1, 1, 1, 3), kLost);
  EXPECT_EQ(restore(1, 0.5, 1, kUnknown, 1, 1, 3), kLost);
  EXPECT_EQ(restore(1, 0.5, 1, -1, 1e-7, 1, 3), kLost);
  EXPECT_EQ(restore(1, 0.5, 1, -1, 1, 2, 3), kLost);
  EXPECT_EQ(restore(1, 0.5, 1, -1, 1, 1, kUnknown), kLost);
}

}  // namespace
}  // namespace signvote
