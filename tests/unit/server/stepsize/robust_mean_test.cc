#include "server/stepsize/robust_mean.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace signvote {
namespace {

using Values = std::vector<double>;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

TEST(RobustMeanTest, OfNothingFiniteThereIsNone) {
  EXPECT_FALSE(RobustMean(Values{}).has_value());
  EXPECT_FALSE(RobustMean(Values{kNan, kInf, -kInf}).has_value());
}

TEST(RobustMeanTest, OfOneOrTwoIsThePlainMean) {
  EXPECT_EQ(*RobustMean(Values{4}), 4);
  EXPECT_EQ(*RobustMean(Values{1, 1000}), 500.5);
  EXPECT_EQ(*RobustMean(Values{kNan, 1, kInf, 3}), 2);
}

TEST(RobustMeanTest, ClipsALiarToThreeDeviationsOfTheMedian) {
  // Median 2, absolute deviations 1 0 1 0 1e9: MAD 1, so the liar counts as 2 + 4.44.
  EXPECT_DOUBLE_EQ(*RobustMean(Values{1, 2, 3, 2, 1e9}), (1 + 2 + 3 + 2 + 6.44) / 5);
}

TEST(RobustMeanTest, OfAnEvenNumberTheMedianLiesBetweenTheTwoInTheMiddle) {
  // Median 2.5, deviations 1.5 .5 .5 97.5, MAD 1: 100 counts as 2.5 + 4.44.
  EXPECT_DOUBLE_EQ(*RobustMean(Values{1, 2, 3, 100}), (1 + 2 + 3 + 6.94) / 4);
}

TEST(RobustMeanTest, ThreeAreEnoughToTellALiar) {
  // Median 2, deviations 1 0 1e9: MAD 1.
  EXPECT_DOUBLE_EQ(*RobustMean(Values{1, 2, 1e9}), (1 + 2 + 6.44) / 3);
  EXPECT_DOUBLE_EQ(*RobustMean(Values{-1e9, 2, 3}), (-2.44 + 2 + 3) / 3);
}

TEST(RobustMeanTest, LeavesHonestValuesAlone) {
  EXPECT_DOUBLE_EQ(*RobustMean(Values{1, 2, 3, 4, 5}), 3);
}

TEST(RobustMeanTest, DoesNotDependOnTheOrder) {
  const Values a{0.1, 0.7, 0.2, 1e-9, 0.3};
  const Values b{1e-9, 0.3, 0.7, 0.1, 0.2};
  EXPECT_EQ(*RobustMean(a), *RobustMean(b));
  // 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ.
  EXPECT_EQ(*RobustMean(Values{0.1, 0.2, 0.3}), *RobustMean(Values{0.3, 0.2, 0.1}));
}

TEST(RobustMeanTest, ScalesExactlyWithPowersOfTwo) {
  const Values values{0.1, 0.7, 0.2, 13.0, 0.3, 0.25};
  Values scaled;
  for (const double v : values) scaled.push_back(v * 0x1p-20);
  EXPECT_EQ(*RobustMean(scaled), *RobustMean(values) * 0x1p-20);
}

TEST(RobustMeanTest, HugeValuesDoNotOverflow) {
  const double huge = std::numeric_limits<double>::max();
  EXPECT_DOUBLE_EQ(*RobustMean(Values{huge, huge}), huge);
  EXPECT_TRUE(std::isfinite(*RobustMean(Values{huge, huge, -huge, huge})));
}

}  // namespace
}  // namespace signvote
