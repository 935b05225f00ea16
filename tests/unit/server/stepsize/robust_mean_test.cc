#include "server/stepsize/robust_mean.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
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

TEST(RobustRatioTest, OneOrTwoPartsAreSummedAsTheyAre) {
  EXPECT_DOUBLE_EQ(*RobustRatio(std::vector<RatioPart>{{3, 2}}), 1.5);
  EXPECT_DOUBLE_EQ(*RobustRatio(std::vector<RatioPart>{{3, 2}, {-1, 8}}), 0.2);
}

TEST(RobustRatioTest, WhatIsNotFiniteOrWeighsNothingIsLeftOut) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  EXPECT_FALSE(RobustRatio({}).has_value());
  EXPECT_FALSE(RobustRatio(std::vector<RatioPart>{{1, 0}, {1, -2}, {nan, 1}, {1, inf}, {inf, 1}})
                   .has_value());
  EXPECT_DOUBLE_EQ(*RobustRatio(std::vector<RatioPart>{{nan, 1}, {1, 4}, {1, 0}}), 0.25);
}

TEST(RobustRatioTest, ALiarIsLeftOutAndNobodyWeighsMoreThanThreeMedians) {
  // Ratios .1, .2, .3, .4 and one of 1e9, which is beyond .3 + 4.44·.1.
  const std::vector<RatioPart> parts = {{.1, 1}, {.2, 1}, {1e9, 1}, {.3, 1}, {.4, 1}};
  EXPECT_DOUBLE_EQ(*RobustRatio(parts), (.1 + .2 + .3 + .4) / 4);
  // A weight of 1e9 counts as three medians.
  const std::vector<RatioPart> heavy = {{.1, 1}, {.2, 1}, {.4e9, 1e9}, {.3, 1}};
  EXPECT_DOUBLE_EQ(*RobustRatio(heavy), (.1 + .2 + .3 + 3 * .4) / 6);
}

TEST(RobustRatioTest, TheOrderOfThePartsDoesNotMatterToTheLastBit) {
  std::vector<RatioPart> parts;
  for (int i = 0; i < 7; ++i) parts.push_back({std::sin(i) / 3, 1 + std::cos(i) / 7});
  const double first = *RobustRatio(parts);
  std::reverse(parts.begin(), parts.end());
  EXPECT_EQ(*RobustRatio(parts), first);
  std::swap(parts[1], parts[5]);
  EXPECT_EQ(*RobustRatio(parts), first);
}

TEST(RobustRatioTest, HugePartsDoNotOverflow) {
  EXPECT_DOUBLE_EQ(
      *RobustRatio(std::vector<RatioPart>{{1e307, 1e308}, {3e307, 1e308}, {2e307, 1e308}}), 0.2);
}

TEST(RobustMeanTest, LengthsAreRobustPerTensorAndOnlyOfWorkersThatSentAllOfThem) {
  std::vector<WorkerScalars> workers(5);
  workers[0].displacement_mean = {1.0f, 2.0f};
  workers[1].displacement_mean = {1.0f, 2.0f};
  workers[2].displacement_mean = {1.0f, 2.0f};
  workers[3].displacement_mean = {1e9f, 2.0f};  // a liar: the deviation of the others is 0
  workers[4].displacement_mean = {7.0f};
  EXPECT_EQ(RobustLengths(workers, 2), (std::vector<float>{1.0f, 2.0f}));
  EXPECT_EQ(RobustLengths({}, 2), (std::vector<float>{0.0f, 0.0f}));
}

}  // namespace
}  // namespace signvote
