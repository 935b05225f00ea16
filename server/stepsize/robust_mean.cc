#include "server/stepsize/robust_mean.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace signvote {
namespace {

// 1.48·MAD estimates the standard deviation of a normal sample; three of them are kept.
constexpr double kClipDeviations = 3 * 1.48;

// REQUIRES: values not empty. Reorders them.
double Median(std::vector<double>& values) {
  const size_t half = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(half), values.end());
  const double upper = values[half];
  if (values.size() % 2 == 1) return upper;
  const double lower =
      *std::max_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(half));
  return lower / 2 + upper / 2;  // halved first: the sum of two large values may overflow
}

}  // namespace

std::optional<double> RobustMean(std::span<const double> values) {
  std::vector<double> kept;
  kept.reserve(values.size());
  for (const double v : values) {
    if (std::isfinite(v)) kept.push_back(v);
  }
  if (kept.empty()) return std::nullopt;
  if (kept.size() > 2) {
    std::vector<double> scratch = kept;
    const double median = Median(scratch);
    for (size_t i = 0; i < kept.size(); ++i) scratch[i] = std::abs(kept[i] - median);
    const double width = kClipDeviations * Median(scratch);
    for (double& v : kept) v = std::clamp(v, median - width, median + width);
  }
  // Ascending order makes the sum independent of the order in which workers answered.
  std::sort(kept.begin(), kept.end());
  double sum = 0;
  for (const double v : kept) sum += v;
  const double n = static_cast<double>(kept.size());
  if (std::isfinite(sum)) return sum / n;
  sum = 0;
  for (const double v : kept) sum += v / n;
  return std::isfinite(sum) ? std::optional(sum) : std::nullopt;
}

}  // namespace signvote
