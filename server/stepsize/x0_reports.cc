#include "server/stepsize/x0_reports.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "server/stepsize/robust_mean.h"

namespace signvote {
namespace {

// What sums of a billion rounded terms may be off by, and far below what a lie would gain.
constexpr double kRounding = 1e-3;

bool AtMost(double a, double b) { return a <= b * (1 + kRounding); }

}  // namespace

std::vector<ScalarKind> X0ReportScalars() {
  return {ScalarKind::kX0Inner, ScalarKind::kX0Distance};
}

std::vector<X0Report> X0Reports(const RuleInput& input) {
  std::vector<X0Report> reports;
  std::vector<double> distances;
  const uint64_t d = input.coordinates;
  const double root = std::sqrt(static_cast<double>(d));
  for (const WorkerScalars& worker : input.workers) {
    const std::optional<double> inner = ScalarOf(worker, input.asked, ScalarKind::kX0Inner);
    const std::optional<double> distance = ScalarOf(worker, input.asked, ScalarKind::kX0Distance);
    if (!inner.has_value() || !distance.has_value()) continue;
    const X0Report report{.inner = *inner,
                          .norm_l1 = worker.g_l1,
                          .norm_l2 = std::sqrt(worker.g_l2_squared),
                          .distance = *distance};
    const bool finite = std::isfinite(report.inner) && std::isfinite(report.norm_l1) &&
                        std::isfinite(report.norm_l2) && std::isfinite(report.distance);
    if (!finite || report.distance < 0) continue;
    distances.push_back(report.distance);
    const bool fits = AtMost(report.norm_l2, report.norm_l1) &&
                      (d == 0 || AtMost(report.norm_l1, root * report.norm_l2)) &&
                      AtMost(std::abs(report.inner), report.norm_l2 * report.distance);
    if (fits) reports.push_back(report);
  }
  if (reports.empty()) return reports;
  const double median = Median(distances);  // where more than half agree, it is one of them
  const auto agrees = [median](double distance) {
    return AtMost(distance, median) && AtMost(median, distance);
  };
  const auto agreeing = std::count_if(distances.begin(), distances.end(), agrees);
  if (2 * static_cast<size_t>(agreeing) <= distances.size()) return {};
  std::erase_if(reports, [&](const X0Report& report) { return !agrees(report.distance); });
  return reports;
}

}  // namespace signvote
