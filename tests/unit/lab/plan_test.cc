// Goal:   a grid ends at its best stepsize whatever the losses look like, and a sweep that was stopped goes
//         on with what is missing.
// Method: the pure planner, fed with losses by a formula, until it wants no more.
#include "lab/sweep/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace signvote::lab {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// Tries what is wanted until nothing is.
template <typename Loss>
std::map<int, double> Tune(const Loss& loss) {
  std::map<int, double> losses;
  for (std::vector<int> next = NextGridSteps(losses); !next.empty(); next = NextGridSteps(losses))
    for (const int step : next) losses[step] = loss(step);
  return losses;
}

int Best(const std::map<int, double>& losses) {
  int best = losses.begin()->first;
  for (const auto& [step, loss] : losses)
    if (loss < losses.at(best)) best = step;
  return best;
}

TEST(GridTest, BeginsWithFiveValuesARootOfTenApart) {
  EXPECT_THAT(NextGridSteps({}), ElementsAre(-4, -2, 0, 2, 4));
  EXPECT_DOUBLE_EQ(GridStepsize(1e-3, 2), 1e-3 * std::sqrt(10.0));
  EXPECT_DOUBLE_EQ(GridStepsize(1e-3, -4), 1e-4);
}

TEST(GridTest, FindsTheBestStepWhereverItLies) {
  for (int best = -20; best <= 20; ++best) {
    const auto losses = Tune([best](int step) { return std::abs(step - best + 0.1); });
    EXPECT_EQ(Best(losses), best);
    EXPECT_LE(losses.size(), 20u) << best;
  }
}

TEST(GridTest, TheNeighboursOfTheBestAreTriedOnBothSides) {
  const auto losses = Tune([](int step) { return std::pow(step - 4, 2); });
  for (const int step : {2, 3, 5, 6}) EXPECT_TRUE(losses.contains(step)) << step;
}

TEST(GridTest, WhatDivergesCountsAsWorseAndSmallerOnesAreTried) {
  const auto losses = Tune([](int step) {
    return step > -9 ? std::numeric_limits<double>::infinity() : std::abs(step + 12.0);
  });
  EXPECT_EQ(Best(losses), -12);
}

TEST(GridTest, EndsWhereNothingComesToItsEnd) {
  const auto losses = Tune([](int) { return std::numeric_limits<double>::infinity(); });
  EXPECT_LE(losses.size(), 20u);
}

SweepSpec Spec() {
  auto spec = ParseSweep(R"(
tasks = ["logistic"]
rules = ["alias", "cosine"]
seeds = [1, 2]
[run]
max-rounds = 10
[rule.cosine]
rule = "fixed"
schedule = "cosine"
grid = 1e-2
)",
                         "a.toml");
  EXPECT_TRUE(spec.ok()) << spec.status();
  return *std::move(spec);
}

TEST(PlanTest, WantsEverySeedOfEveryGroupAndOfEachStepOfAGrid) {
  const SweepPlan plan = PlanSweep(Spec(), {});
  EXPECT_THAT(plan.next, SizeIs(2 + 5 * 2));
  EXPECT_EQ(plan.done, 0u);
}

TEST(PlanTest, GoesOnFromWhatIsDoneUntilNothingIsMissing) {
  const SweepSpec spec = Spec();
  LossesById done;
  std::map<double, double> grid;  // sums of the seeds' losses
  size_t rounds = 0;
  for (SweepPlan plan = PlanSweep(spec, done); !plan.next.empty(); plan = PlanSweep(spec, done)) {
    ASSERT_LT(++rounds, 100u);
    // One at a time, as after a stop behind each.
    const SweepCell& cell = plan.next.front();
    done[cell.id] = cell.stepsize.has_value() ? std::abs(std::log10(*cell.stepsize / 3e-2)) : 1.0;
    if (cell.stepsize.has_value()) grid[*cell.stepsize] += done[cell.id];
    EXPECT_EQ(PlanSweep(spec, done).done, plan.done + 1);
    EXPECT_EQ(plan.known.size(), plan.done + plan.next.size());
  }
  const auto best = std::min_element(
      grid.begin(), grid.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  EXPECT_NEAR(best->first, 3.16e-2, 1e-3);
  EXPECT_EQ(done.size(), rounds);
  const SweepPlan whole = PlanSweep(spec, done);
  EXPECT_EQ(whole.known.size(), done.size());
  for (const SweepCell& cell : whole.known) EXPECT_TRUE(done.contains(cell.id));
}

TEST(PlanTest, RunsOfAnotherFileInTheSameResultsAreNotKnown) {
  const SweepSpec spec = Spec();
  const size_t known = PlanSweep(spec, {}).known.size();
  const SweepPlan plan = PlanSweep(spec, {{"0000000000000001", 1.0}});
  EXPECT_EQ(plan.known.size(), known);
  EXPECT_EQ(plan.done, 0u);
}

TEST(PlanTest, RunsOfDifferentSeedsStepsAndFlagsHaveDifferentIds) {
  const SweepSpec spec = Spec();
  std::set<std::string> ids;
  for (const size_t group : {0u, 1u})
    for (const uint64_t seed : {1u, 2u})
      for (const int step : {0, 1}) ids.insert(CellOf(spec, group, seed, step).id);
  // The step of a grid is nothing to a group without one.
  EXPECT_EQ(ids.size(), 2u + 4u);
}

}  // namespace
}  // namespace signvote::lab
