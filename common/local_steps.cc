#include "common/local_steps.h"

#include <algorithm>

namespace signvote {

float InnerStepsize(const LocalSteps& local, uint32_t h) {
  const double first = static_cast<double>(local.eta_first);
  const double way = static_cast<double>(local.eta_last) - first;
  const double last_step = static_cast<double>(std::max(local.steps, 2u) - 1);
  return static_cast<float>(first + way * static_cast<double>(h) / last_step);
}

double InnerStepsizeSum(const LocalSteps& local) {
  double sum = 0;
  for (uint32_t h = 0; h < local.steps; ++h) sum += static_cast<double>(InnerStepsize(local, h));
  return sum;
}

}  // namespace signvote
