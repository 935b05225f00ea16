#include "server/stepsize/lever_scale.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace signvote {
namespace {

const std::vector<ScalarKind> kAsked = {ScalarKind::kX0Inner, ScalarKind::kX0Distance};

WorkerScalars Worker(double p, double q, double r) {
  return {.loss = 1, .g_l1 = 2 * q, .g_l2_squared = q * q, .wanted = {p, r}};
}

std::optional<Lean> Measure(const std::vector<WorkerScalars>& workers) {
  return MeasureLean({.asked = kAsked, .workers = workers});
}

TEST(LeverScaleTest, ZIsTheSumOfTheProductsOverTheSumOfTheNormsTimesTheDistance) {
  const auto lean = Measure({Worker(0.3, 2, 0.5), Worker(-0.1, 1, 0.5)});
  ASSERT_TRUE(lean.has_value());
  EXPECT_DOUBLE_EQ(lean->z, 0.2 / (3 * 0.5));
  EXPECT_EQ(lean->workers, 2u);
}

TEST(LeverScaleTest, WhereNothingHasMovedOrNobodyCanTellThereIsNoZ) {
  const double nan = std::nan("");
  EXPECT_FALSE(Measure({}).has_value());
  EXPECT_FALSE(Measure({Worker(0, 1, 0)}).has_value());
  EXPECT_FALSE(Measure({Worker(1, 0, 1)}).has_value());
  EXPECT_FALSE(Measure({Worker(nan, 1, 1), Worker(1, 1, nan)}).has_value());
  EXPECT_FALSE(Measure({{.loss = 1, .g_l2_squared = 1}}).has_value());
}

TEST(LeverScaleTest, OneLiarOfFiveHardlyMovesZ) {
  std::vector<WorkerScalars> workers;
  for (int i = 0; i < 5; ++i) workers.push_back(Worker(0.10 + 0.01 * i, 1 + 0.1 * i, 2));
  const double honest = Measure(workers)->z;
  for (const WorkerScalars& lie :
       {Worker(-1e300, 1, 2), Worker(0.1, 1, 1e300), Worker(-1e30, 1e30, 2), Worker(5, 1e-30, 0),
        Worker(std::nan(""), 1, 2)}) {
    auto lied = workers;
    lied[2] = lie;
    EXPECT_NEAR(Measure(lied)->z, honest, 0.03);
  }
}

TEST(LeverScaleTest, ItMovesByTheFormula) {
  LeverScale scale(0.01);
  double log_scale = std::log(0.01), v = 0;
  const double zs[] = {0.2, -0.05, 0.9, 0.1, -0.3, 0.0};
  for (uint64_t k = 1; k <= 6; ++k) {
    const double z = zs[k - 1];
    const uint64_t t = 40 + k;
    v = 0.97 * v + 0.03 * z * z;
    const double unit = z / std::sqrt(v / (1 - std::pow(0.97, static_cast<double>(k))));
    log_scale += 3.0 / (static_cast<double>(t) + 1) * std::min(2.0, std::max(-2.0, unit));
    scale.Move({.z = z, .workers = 3}, t, 4);
    EXPECT_NEAR(scale.s(), std::exp(log_scale), 1e-14) << k;
    EXPECT_NEAR(scale.v(), v, 1e-15);
  }
}

TEST(LeverScaleTest, TheFirstUpdateIsOneGainAndAnOutlierTwo) {
  LeverScale scale(1);
  scale.Move({.z = 1e-9, .workers = 16}, 99, 4);
  EXPECT_NEAR(std::log(scale.s()), 4.0 / 100, 1e-12);
  for (int k = 0; k < 50; ++k)
    scale.Move({.z = k % 2 == 0 ? -1e-9 : 1e-9, .workers = 16}, 1u << 30, 4);
  const double before = std::log(scale.s());
  scale.Move({.z = -1, .workers = 1}, 99, 4);
  EXPECT_NEAR(std::log(scale.s()) - before, -2.0 / 100, 1e-9);
}

TEST(LeverScaleTest, ItGrowsWithAPartOfTheGainWhereOnlyThatCounts) {
  for (const double z : {1e-3, -1e-3}) {
    LeverScale scale(1);
    scale.Move({.z = z, .workers = 2}, 99, 4, 0.25);
    EXPECT_NEAR(std::log(scale.s()), z > 0 ? 0.25 * 2 / 100 : -2.0 / 100, 1e-12) << z;
  }
}

TEST(LeverScaleTest, ALeanOfZeroLeavesItAlone) {
  LeverScale scale(0.5);
  scale.Move({.z = 0, .workers = 4}, 10, 4);
  EXPECT_DOUBLE_EQ(scale.s(), 0.5);
}

TEST(LeverScaleTest, ItStaysAStepsizeWhateverLeans) {
  LeverScale up(1), down(1);
  for (int i = 0; i < 500; ++i) {
    up.Move({.z = 1, .workers = 4}, 0, 4);
    down.Move({.z = -1, .workers = 4}, 0, 4);
  }
  EXPECT_LE(up.s(), 1.0001e30);
  EXPECT_GE(down.s(), 0.9999e-30);
  EXPECT_GE(LeverScale(1e-37).s(), 0.9999e-30);
}

TEST(LeverScaleTest, WhatIsSavedIsRestoredAndNonsenseIsNot) {
  LeverScale scale(0.02);
  scale.Move({.z = 0.5, .workers = 2}, 30, 4);
  scale.Move({.z = -0.25, .workers = 2}, 31, 4);
  RuleStateWriter writer("r", 1);
  scale.Save(writer);
  const std::string bytes = writer.Take();
  RuleStateReader reader(bytes, "r", 1);
  LeverScale other(1);
  ASSERT_TRUE(other.Restore(reader).ok());
  scale.Move({.z = 0.1, .workers = 2}, 32, 4);
  other.Move({.z = 0.1, .workers = 2}, 32, 4);
  EXPECT_EQ(other.s(), scale.s());

  const auto restore = [](double log_scale, double v, uint64_t updates) {
    RuleStateWriter out("r", 1);
    out.Add(log_scale);
    out.Add(v);
    out.Add(updates);
    const std::string damaged = out.Take();
    RuleStateReader in(damaged, "r", 1);
    LeverScale target(1);
    return target.Restore(in).code();
  };
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(restore(-3, 0.5, 7), absl::StatusCode::kOk);
  EXPECT_EQ(restore(inf, 0.5, 7), absl::StatusCode::kDataLoss);
  EXPECT_EQ(restore(1000, 0.5, 7), absl::StatusCode::kDataLoss);
  EXPECT_EQ(restore(-1000, 0.5, 7), absl::StatusCode::kDataLoss);
  EXPECT_EQ(restore(-3, -0.5, 7), absl::StatusCode::kDataLoss);
  EXPECT_EQ(restore(-3, 2, 7), absl::StatusCode::kDataLoss);
  EXPECT_EQ(restore(-3, 0.5, 0), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace signvote
