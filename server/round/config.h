#pragma once
// What the round engine is told once.

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"

namespace signvote::round {

struct DeadlineConfig {
  // off: a round waits for every live member (determinism tests)
  bool enabled = true;
  Duration initial = std::chrono::seconds(60);  // while no arrival was seen yet
  // grace = clamp(multiple × median arrival, floor, ceiling)
  double grace_multiple = 1.0;
  Duration grace_floor = std::chrono::milliseconds(500);
  Duration grace_ceiling = std::chrono::milliseconds(1500);
  // A member is waited for at most this many times as long as its own first rounds took.
  double growth = 8;
};

struct EngineConfig {
  uint64_t coordinates = 0;  // d, for the density
  uint32_t chunks = 0;
  // The run ends after this many main rounds; 0: only the rule, or a person, ends it.
  uint64_t main_rounds_max = 0;
  uint32_t workers_min = 1;  // round 0 opens once this many workers are ready
  // workers connected at a time; the tally's limit is the upper bound
  uint32_t workers_max = 1024;
  uint32_t quorum = 0;  // 0: ⌈members/2⌉
  DeadlineConfig deadline;
  uint32_t observer_after = 5;  // rounds in a row without a ballot that counts as given
  // Rounds for which the ballots of a worker that joined the running run have weight 0.
  uint32_t warm_in_rounds = 0;
  uint32_t nonfinite_rounds = 5;     // rounds in a row without any finite loss that end the run
  uint64_t share_hold_rounds = 100;  // a lost worker's share stays reserved for its name
  uint64_t digest_every = 50;        // rounds between replica digests; 0: only at the end
  // Longest wait for workers, for a quorum, and for a step while every round closes without one.
  Duration wait_timeout = std::chrono::hours(1);
  // Longest that a stop waits for the open round; what follows that: engine.h.
  Duration stop_wait = std::chrono::seconds(10);
  Duration linger = std::chrono::seconds(30);  // longest wait for final digests
  // An engine that goes on with a run waits so long, before its first round, for those who were there.
  Duration return_wait{};
  double x0_max_abs = 0;
  double step_scale_max = 1;
  std::vector<float> step_scales;  // per tensor of the layout
  // Likewise, of dense updates in rounds with local steps: local_lengths.h; empty: no tensor is dense.
  std::vector<float> dense_steps;
};

// INVALID_ARGUMENT names the first value that is out of range, and the range.
absl::Status ValidateConfig(const EngineConfig& config);

}  // namespace signvote::round
