#include "server/stepsize/input_means.h"

#include <vector>

#include "server/stepsize/robust_mean.h"

namespace signvote {
namespace {

template <typename Value>
std::optional<double> MeanOver(const RuleInput& input, const Value& value) {
  std::vector<double> values;
  values.reserve(input.workers.size());
  for (const WorkerScalars& worker : input.workers) {
    if (const std::optional<double> of_worker = value(worker)) values.push_back(*of_worker);
  }
  return RobustMean(values);
}

}  // namespace

std::optional<double> MeanLoss(const RuleInput& input) {
  return MeanOver(input, [](const WorkerScalars& worker) { return std::optional(worker.loss); });
}

std::optional<double> MeanL1(const RuleInput& input) {
  return MeanOver(input, [](const WorkerScalars& worker) { return std::optional(worker.g_l1); });
}

std::optional<double> MeanOf(const RuleInput& input, ScalarKind kind) {
  return MeanOver(input,
                  [&](const WorkerScalars& worker) { return ScalarOf(worker, input.asked, kind); });
}

}  // namespace signvote
