#include "server/stepsize/trial_losses.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace signvote {
namespace {

using ShareLosses = std::vector<std::pair<uint32_t, double>>;

void Add(TrialLosses& trial, uint64_t step, const ShareLosses& losses) {
  std::vector<WorkerScalars> workers;
  std::vector<Share> shares;
  for (const auto& [share, loss] : losses) {
    workers.push_back({.loss = loss});
    shares.emplace_back(share);
  }
  trial.Add(step, {.workers = workers, .shares = shares});
}

TEST(TrialLossesTest, TheMeanIsThatOfTheStepsRobustMeans) {
  TrialLosses trial;
  EXPECT_FALSE(trial.Mean().has_value());
  Add(trial, 0, {{0, 1}, {1, 3}});
  Add(trial, 1, {});
  Add(trial, 2, {{1, 6}});
  EXPECT_EQ(trial.Mean()->mean, 4.0);
  EXPECT_EQ(trial.Mean()->steps, 2u);
  EXPECT_EQ(trial.Mean(1)->mean, 6.0);
  EXPECT_EQ(trial.Mean(1)->steps, 1u);
  EXPECT_FALSE(trial.Mean(3).has_value());
  EXPECT_TRUE(trial.Has(2));
  EXPECT_FALSE(trial.Has(1));
  EXPECT_EQ(trial.end(), 3u);
}

TEST(TrialLossesTest, OnlyPairsThatBothHaveAreCompared) {
  TrialLosses a, b;
  Add(a, 0, {{1, 5}, {0, 1}});
  Add(a, 1, {{0, 2}});
  Add(a, 3, {{2, 9}});
  Add(b, 0, {{0, 0.5}, {2, 77}});
  Add(b, 2, {{0, 77}});
  EXPECT_EQ(a.Above(b)->mean, 0.5);
  EXPECT_EQ(a.Above(b)->steps, 1u);
  EXPECT_EQ(a.Above(b)->standard_error, 0.0);
  Add(b, 3, {{2, 7.5}});
  EXPECT_EQ(a.Above(b)->mean, 1.0);
  EXPECT_EQ(b.Above(a)->mean, -1.0);
  EXPECT_EQ(a.Above(b)->steps, 2u);
  // Two values 0.5 and 1.5: deviation √½, of their mean ½.
  EXPECT_DOUBLE_EQ(a.Above(b)->standard_error, 0.5);
  EXPECT_EQ(a.Above(b)->mean_step, 1.5);  // of steps 0 and 3
  EXPECT_EQ(a.Above(b, 3)->mean, 1.5);
  EXPECT_EQ(*a.AboveAt(b, 3), 1.5);
  EXPECT_FALSE(a.AboveAt(b, 2).has_value());
  EXPECT_FALSE(a.Above(b, 4).has_value());
}

TEST(TrialLossesTest, WithoutACommonPairThereIsNoDifference) {
  TrialLosses a, b;
  Add(a, 0, {{0, 1}});
  Add(b, 0, {{1, 1}});
  Add(b, 1, {{0, 1}});
  EXPECT_FALSE(a.Above(b).has_value());
  EXPECT_FALSE(b.Above(TrialLosses()).has_value());
}

TEST(TrialLossesTest, OneLiarOfFiveDoesNotDecideAndAnInfiniteLossIsLeftOut) {
  TrialLosses honest, lied;
  for (uint64_t step = 0; step < 8; ++step) {
    ShareLosses losses;
    for (uint32_t share = 0; share < 5; ++share)
      losses.emplace_back(share, 2 + 0.1 * share + 0.01 * static_cast<double>(step));
    Add(honest, step, losses);
    for (auto& [share, loss] : losses) loss += 0.25 + 0.001 * share;
    losses[3].second = step % 2 == 0 ? -1e6 : std::numeric_limits<double>::infinity();
    Add(lied, step, losses);
  }
  EXPECT_NEAR(lied.Above(honest)->mean, 0.25, 0.01);
  EXPECT_TRUE(std::isfinite(lied.Mean()->mean));
}

TEST(TrialLossesTest, WithoutSharesAWorkersPlaceStandsForIt) {
  const std::vector<WorkerScalars> workers = {{.loss = 1}, {.loss = 2}};
  TrialLosses a, b;
  a.Add(0, {.workers = workers});
  Add(b, 0, {{1, 1.5}});
  EXPECT_EQ(a.Above(b)->mean, 0.5);
}

TEST(TrialLossesTest, WhatIsSavedIsRestoredAndNonsenseIsNot) {
  TrialLosses trial;
  Add(trial, 0, {{4, 1.25}, {0, 2}});
  Add(trial, 5, {{2, -3}});
  RuleStateWriter writer("r", 1);
  trial.Save(writer);
  const std::string bytes = writer.Take();
  RuleStateReader reader(bytes, "r", 1);
  TrialLosses other;
  ASSERT_TRUE(other.Restore(reader).ok());
  ASSERT_TRUE(reader.Finish().ok());
  EXPECT_EQ(other.Above(trial)->mean, 0.0);
  EXPECT_EQ(other.Mean()->mean, trial.Mean()->mean);
  EXPECT_EQ(other.end(), 6u);

  const auto restore = [](const std::vector<double>& fields) {
    RuleStateWriter out("r", 1);
    out.Add(uint64_t{fields.size() / 3});
    for (size_t i = 0; i < fields.size(); ++i) {
      if (i % 3 == 2) {
        out.Add(fields[i]);
      } else {
        out.Add(static_cast<uint64_t>(fields[i]));
      }
    }
    const std::string damaged = out.Take();
    RuleStateReader in(damaged, "r", 1);
    TrialLosses target;
    return target.Restore(in).code();
  };
  EXPECT_EQ(restore({0, 1, 2.5, 1, 0, 2.5}), absl::StatusCode::kOk);
  EXPECT_EQ(restore({1, 0, 2.5, 0, 0, 2.5}), absl::StatusCode::kDataLoss);
  EXPECT_EQ(restore({0, 1, 2.5, 0, 1, 2.5}), absl::StatusCode::kDataLoss);
  EXPECT_EQ(restore({0, 1, std::nan("")}), absl::StatusCode::kDataLoss);
  EXPECT_EQ(restore({0, 1e15, 2.5}), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace signvote
