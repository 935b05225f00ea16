#include "lab/sweep/plan.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>
#include <utility>

namespace signvote::lab {
namespace {

constexpr int kCoarse = 2;  // √10
constexpr int kFirst[] = {-4, -2, 0, 2, 4};
constexpr int kFarthest = 24;  // six decades from the middle: nothing works, or all does

}  // namespace

double GridStepsize(double middle, int step) { return middle * std::pow(10.0, 0.25 * step); }

std::vector<int> NextGridSteps(const std::map<int, double>& losses) {
  if (losses.empty()) return {std::begin(kFirst), std::end(kFirst)};
  const auto best =
      std::min_element(losses.begin(), losses.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  if (!std::isfinite(best->second)) {
    // None has come to its end: smaller ones will, if any does.
    const int smaller = losses.begin()->first - kCoarse;
    return smaller < -kFarthest ? std::vector<int>() : std::vector<int>{smaller};
  }
  std::vector<int> next;
  const auto want = [&](int step) {
    if (std::abs(step) <= kFarthest && !losses.contains(step)) next.push_back(step);
  };
  // A refined one that is the best is surrounded already.
  if (best->first % kCoarse != 0) return {};
  want(best->first - kCoarse);
  want(best->first + kCoarse);
  if (!next.empty()) return next;
  want(best->first - kCoarse / 2);
  want(best->first + kCoarse / 2);
  return next;
}

namespace {

// The mean over the seeds of one step; nullopt while some are missing, which go to plan->next.
std::optional<double> MeanLoss(const SweepSpec& spec, size_t group, int step,
                               const LossesById& done, SweepPlan* plan) {
  double sum = 0;
  bool complete = true;
  for (const uint64_t seed : spec.groups[group].seeds) {
    SweepCell cell = CellOf(spec, group, seed, step);
    const auto found = done.find(cell.id);
    if (found != done.end()) {
      sum += found->second;
    } else {
      complete = false;
      plan->next.push_back(cell);
    }
    plan->known.push_back(std::move(cell));
  }
  if (!complete) return std::nullopt;
  return sum / static_cast<double>(spec.groups[group].seeds.size());
}

}  // namespace

SweepPlan PlanSweep(const SweepSpec& spec, const LossesById& done) {
  SweepPlan plan;
  for (size_t group = 0; group < spec.groups.size(); ++group) {
    std::map<int, double> losses;
    // Without a grid one step is all there is.
    std::vector<int> wanted =
        spec.groups[group].grid.has_value() ? NextGridSteps(losses) : std::vector<int>{0};
    while (!wanted.empty()) {
      const size_t before = plan.next.size();
      for (const int step : wanted) {
        const std::optional<double> mean = MeanLoss(spec, group, step, done, &plan);
        if (mean.has_value()) losses[step] = *mean;
      }
      const bool missing = plan.next.size() > before;
      if (missing || !spec.groups[group].grid.has_value()) break;
      wanted = NextGridSteps(losses);
    }
  }
  plan.done = plan.known.size() - plan.next.size();
  return plan;
}

}  // namespace signvote::lab
