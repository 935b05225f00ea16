#pragma once
// The fixed rule: a stepsize that a person chose, with a schedule.

#include <cstdint>
#include <memory>

#include "server/stepsize/stepsize_rule.h"

namespace signvote {

// γ_t = γ0 · min(warm-up, schedule), with t the main rounds committed before, T = main_rounds_max,
// w = warmup_rounds:
//   warm-up   (t + 1) / w while t < w, then 1
//   constant  1
//   cosine    ½·(1 + cos πp),  p = (t − w)/(T − w) in [0, 1), 0 during the warm-up
//   linear    1 − p
//   wsd       min(1, (T − t)/D),  D = ⌈decay_fraction·T⌉: flat, then linear
// So the last round of a decaying schedule still moves; rounds beyond T keep the last round's γ. A
// run of unknown length (T = 0) has only the warm-up.
enum class ScheduleKind { kConstant, kCosine, kLinear, kWsd };

struct FixedConfig {
  double gamma0 = 1e-3;  // > 0
  ScheduleKind schedule = ScheduleKind::kConstant;
  uint64_t warmup_rounds = 0;  // γ rises linearly to γ0 over this many rounds
  // wsd: the last part of the run, in which γ falls linearly; in (0, 1]
  double decay_fraction = 0.2;
};

// REQUIRES: values in the ranges above.
std::unique_ptr<StepsizeRule> MakeFixedRule(const FixedConfig& config);

}  // namespace signvote
