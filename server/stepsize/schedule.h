#pragma once
// How a stepsize rises and falls over the main rounds of a run, as a factor of at most 1.

#include <cstdint>

namespace signvote {

enum class ScheduleKind { kConstant, kCosine, kLinear, kWsd };

struct Schedule {
  ScheduleKind kind = ScheduleKind::kConstant;
  uint64_t warmup_rounds = 0;  // it rises linearly over this many rounds
  // wsd: the last part of the run, in which it falls linearly; in (0, 1]
  double decay_fraction = 0.2;
};

// min(warm-up, schedule) with t the main rounds committed before, T = rounds_max, w = warmup_rounds:
//   warm-up   (t + 1) / w while t < w, then 1
//   constant  1
//   cosine    ½·(1 + cos πp),  p = (t − w)/(T − w) in [0, 1), 0 during the warm-up
//   linear    1 − p
//   wsd       min(1, (T − t)/D),  D = ⌈decay_fraction·T⌉: flat, then linear
// So the last round of a decaying schedule still moves; rounds beyond T keep the last round's factor. A
// run of unknown length (T = 0) has only the warm-up.
double ScheduleFactor(const Schedule& schedule, uint64_t t, uint64_t rounds_max);

}  // namespace signvote
