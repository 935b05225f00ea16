#pragma once
// One seeded run: server, workers, strangers, network and faults in one thread, from the first join
// to the end of the run. docs/simulation.md.

#include <cstdint>
#include <optional>
#include <string>

#include "tests/sim/frames.h"
#include "tests/sim/options.h"

namespace signvote::sim {

struct SimResult {
  std::optional<std::string> failure;  // the first broken rule
  uint64_t rounds = 0;
  uint64_t digest = 0;       // of the replicas at the end
  uint64_t fingerprint = 0;  // equal for equal runs
};

// Hands frames on as they are.
class StructCodec final : public Codec {
 public:
  absl::StatusOr<UpFrame> Pass(UpFrame frame) override { return frame; }
  absl::StatusOr<DownFrame> Pass(DownFrame frame) override { return frame; }
  absl::StatusOr<StateFrame> PassFetched(StateFrame frame) override { return frame; }
  absl::StatusOr<StateFrame> PassUploaded(StateFrame frame) override { return frame; }
};

// Safety is checked at every step (Checker). Faults strike until `heal_round` is reached; from then
// on nothing goes wrong any more and the run must finish, with every replica equal.
SimResult RunSimulation(const SimOptions& options, Codec* codec, SimCounters* counters);

// Seeds first, first + step, … below `last`, each with what DrawOptions() draws. Stops at the first
// that fails and says how to repeat it; prints the counters.
struct SeedRange {
  uint64_t first = 0, last = 0, step = 1;
  bool trace = false;
};
std::optional<std::string> RunSeeds(const SeedRange& seeds, Codec* codec, SimCounters* counters);

}  // namespace signvote::sim
