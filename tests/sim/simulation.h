#pragma once
// One seeded run: server, workers, network and injector in one thread, from the first join to the
// end of the run.

#include <cstdint>
#include <optional>
#include <string>

#include "tests/sim/model.h"
#include "tests/sim/options.h"

namespace signvote::sim {

struct SimResult {
  std::optional<std::string> failure;  // the first broken rule
  uint64_t rounds = 0;
  uint64_t fingerprint = 0;  // equal for equal runs
};

// Safety is checked at every step (Checker). Faults strike until `heal_round` is reached; from then
// on nothing goes wrong any more and the run must finish, with every replica equal.
SimResult RunSimulation(const SimOptions& options, const Model& model, SimCounters* counters);

}  // namespace signvote::sim
