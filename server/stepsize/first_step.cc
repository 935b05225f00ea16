#include "server/stepsize/first_step.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace signvote {
namespace {

constexpr double kFirstStepRelative = 1e-5;

}  // namespace

float FirstStepsize(double x0_max_abs) {
  const double size = std::isfinite(x0_max_abs) ? std::max(1.0, x0_max_abs) : 1.0;
  return static_cast<float>(kFirstStepRelative * size);
}

bool IsStepsize(double gamma) {
  return gamma > 0 && gamma <= double{std::numeric_limits<float>::max()} &&
         double{static_cast<float>(gamma)} == gamma;
}

}  // namespace signvote
