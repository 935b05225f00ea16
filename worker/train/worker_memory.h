#pragma once
// What a worker of a run takes of the host's memory: docs/models.md, "Memory", part by part.

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/memory_budget.h"
#include "worker/session/types.h"

namespace signvote {

// What a worker's own flags decide.
struct WorkerMemoryNeeds {
  bool evaluates = false;      // a replica is kept while it is measured
  bool writes_copies = false;  // --save-every
  bool checkpoints = false;    // --checkpoint
};

// Parameters and gradient, which the model has from its making on.
std::vector<MemoryPart> ModelMemory(uint64_t coordinates);
// All that comes on top once the run is known, but for activations, whose size only a pass tells.
std::vector<MemoryPart> RunMemory(const RunInfo& run, const WorkerMemoryNeeds& needs);

// OK when what RunMemory() takes fits into what is left beside the model. RESOURCE_EXHAUSTED with exit
// code kNoMemory otherwise: the bytes of each part, the model's too, and the flags that help.
absl::Status CheckRunMemory(const RunInfo& run, const WorkerMemoryNeeds& needs,
                            const std::optional<MemoryLimit>& left);

}  // namespace signvote
