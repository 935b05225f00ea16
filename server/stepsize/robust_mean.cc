#include "server/stepsize/robust_mean.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace signvote {
namespace {

// 1.48·MAD estimates the standard deviation of a normal sample; three of them are kept.
constexpr double kClipDeviations = 3 * 1.48;
// The most that one worker weighs, in medians.
constexpr double kWeightMedians = 3;

// REQUIRES: values has more than two.
void Clip(std::vector<double>& values) {
  std::vector<double> scratch = values;
  const double median = Median(scratch);
  for (size_t i = 0; i < values.size(); ++i) scratch[i] = std::abs(values[i] - median);
  const double width = kClipDeviations * Median(scratch);
  for (double& v : values) v = std::clamp(v, median - width, median + width);
}

}  // namespace

double Median(std::vector<double>& values) {
  const size_t half = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(half), values.end());
  const double upper = values[half];
  if (values.size() % 2 == 1) return upper;
  const double lower =
      *std::max_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(half));
  return lower / 2 + upper / 2;  // halved first: the sum of two large values may overflow
}

std::optional<double> RobustMean(std::span<const double> values) {
  std::vector<double> kept;
  kept.reserve(values.size());
  for (const double v : values) {
    if (std::isfinite(v)) kept.push_back(v);
  }
  if (kept.empty()) return std::nullopt;
  if (kept.size() > 2) Clip(kept);
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

std::optional<double> RobustRatio(std::span<const RatioPart> parts) {
  // Ascending order, as above.
  std::vector<std::pair<double, double>> kept;  // ratio, weight
  for (const RatioPart& part : parts) {
    if (!std::isfinite(part.weight) || part.weight <= 0) continue;
    const double ratio = part.numerator / part.weight;
    if (std::isfinite(ratio)) kept.emplace_back(ratio, part.weight);
  }
  if (kept.empty()) return std::nullopt;
  std::sort(kept.begin(), kept.end());
  std::vector<double> ratios, weights;
  for (const auto& [ratio, weight] : kept) {
    ratios.push_back(ratio);
    weights.push_back(weight);
  }
  double unit = *std::max_element(weights.begin(), weights.end());
  if (kept.size() > 2) {
    Clip(ratios);
    std::vector<double> scratch = weights;
    unit = std::min(unit, kWeightMedians * Median(scratch));
    for (size_t i = 0; i < weights.size(); ++i)
      weights[i] = ratios[i] == kept[i].first ? std::min(weights[i], unit) : 0.0;
  }
  // In units of the largest weight, so that no product overflows.
  double sum = 0, total = 0;
  for (size_t i = 0; i < ratios.size(); ++i) {
    sum += ratios[i] * (weights[i] / unit);
    total += weights[i] / unit;
  }
  const double ratio = sum / total;
  return std::isfinite(ratio) ? std::optional(ratio) : std::nullopt;
}

std::vector<float> RobustLengths(std::span<const WorkerScalars> workers, size_t tensors) {
  std::vector<float> lengths(tensors, 0.0f);
  std::vector<double> of_tensor;
  for (size_t k = 0; k < tensors; ++k) {
    of_tensor.clear();
    for (const WorkerScalars& worker : workers) {
      if (worker.displacement_mean.size() == tensors)
        of_tensor.push_back(static_cast<double>(worker.displacement_mean[k]));
    }
    lengths[k] = static_cast<float>(RobustMean(of_tensor).value_or(0.0));
  }
  return lengths;
}

}  // namespace signvote
