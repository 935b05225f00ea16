#include "server/stepsize/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace signvote {

double ScheduleFactor(const Schedule& schedule, uint64_t t, uint64_t rounds_max) {
  const uint64_t warmup = schedule.warmup_rounds;
  double warm = 1;
  if (t < warmup) warm = (static_cast<double>(t) + 1) / static_cast<double>(warmup);
  if (rounds_max == 0) return warm;
  const uint64_t at = std::min(t, rounds_max - 1);
  double p = 0;
  if (at > warmup) p = static_cast<double>(at - warmup) / static_cast<double>(rounds_max - warmup);
  switch (schedule.kind) {
    case ScheduleKind::kConstant:
      return warm;
    case ScheduleKind::kCosine:
      return std::min(warm, 0.5 * (1 + std::cos(std::numbers::pi * p)));
    case ScheduleKind::kLinear:
      return std::min(warm, 1 - p);
    case ScheduleKind::kWsd: {
      const double decay = std::ceil(schedule.decay_fraction * static_cast<double>(rounds_max));
      return std::min(warm, static_cast<double>(rounds_max - at) / decay);
    }
  }
  return warm;
}

}  // namespace signvote
