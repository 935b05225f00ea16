#include "server/stepsize/local_lengths.h"

#include <algorithm>
#include <cmath>

#include "server/stepsize/robust_mean.h"

namespace signvote {
namespace {

bool AreLengths(std::span<const float> lengths, size_t tensors) {
  return lengths.size() == tensors && std::all_of(lengths.begin(), lengths.end(), [](float v) {
           return std::isfinite(v) && v >= 0;
         });
}

}  // namespace

std::optional<LocalLengths> MeanLengths(const LocalSteps& local, std::span<const float> step_scales,
                                        std::span<const float> dense_steps,
                                        std::span<const WorkerScalars> workers) {
  const double eta_sum = InnerStepsizeSum(local);
  std::vector<const WorkerScalars*> heard;
  for (const WorkerScalars& worker : workers) {
    if (AreLengths(worker.displacement_mean, step_scales.size())) heard.push_back(&worker);
  }
  if (heard.empty()) return std::nullopt;
  LocalLengths lengths{.scales = std::vector<float>(step_scales.size()),
                       .decay_step = static_cast<float>(eta_sum)};
  std::vector<double> of_tensor(heard.size());
  for (size_t k = 0; k < step_scales.size(); ++k) {
    if (!dense_steps.empty() && dense_steps[k] > 0) {
      lengths.scales[k] = dense_steps[k] / step_scales[k];
      continue;
    }
    const double longest = static_cast<double>(step_scales[k]) * eta_sum;
    for (size_t j = 0; j < heard.size(); ++j)
      of_tensor[j] = std::min(static_cast<double>(heard[j]->displacement_mean[k]), longest);
    lengths.scales[k] = static_cast<float>(RobustMean(of_tensor).value_or(0.0) /
                                           static_cast<double>(step_scales[k]));
  }
  return lengths;
}

}  // namespace signvote
