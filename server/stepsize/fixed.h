#pragma once
// The fixed rule: a stepsize that a person chose, with a schedule.

#include <memory>

#include "server/stepsize/local_schedule.h"
#include "server/stepsize/schedule.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote {

// γ_t = γ0 · ScheduleFactor(schedule, t, T), with t the main rounds committed before and T =
// main_rounds_max. With local steps t and T count minibatches, the schedule's warm-up too, and γ is the
// inner stepsize: a round says that of its first and of its last minibatch.
struct FixedConfig {
  double gamma0 = 1e-3;  // > 0
  Schedule schedule;
  LocalSchedule local;
};

// REQUIRES: values in the ranges above.
std::unique_ptr<StepsizeRule> MakeFixedRule(const FixedConfig& config);

}  // namespace signvote
