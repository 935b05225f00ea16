#pragma once
// What travels in a round of a run, chunk by chunk: votes, counts, and the numbers of dense tensors
// (docs/algorithms.md, "Dense tensors").
//
// Threads: pure functions.

#include <vector>

#include "absl/status/statusor.h"
#include "common/layout.h"
#include "common/payload_plan.h"
#include "common/vote_terms.h"
#include "server/tally/dense_tally.h"

namespace signvote::run {

// How dense tensors travel and move. Which ones are dense the layout says.
struct DenseOptions {
  PayloadKind wire = PayloadKind::kFp32;  // of ballots and updates: fp32 or bf16
  float stepsize = 1;                     // with local steps: of the update, > 0; else the rule's
  DenseOptimizer optimizer;
};

// Dense tensors come last, so that the chunks that they take are neighbours; otherwise the order stays.
void DenseLast(std::vector<TensorSpec>* tensors);

// The payloads of a run of this layout. Every chunk with a coordinate of a dense tensor is dense.
struct RunPayloads {
  PayloadPlan ballots, commits;

  // Coordinates of dense chunks.
  uint64_t DenseCoordinates() const;
};
// INVALID_ARGUMENT: PayloadPlan::Make(). REQUIRES: dense tensors come last.
absl::StatusOr<RunPayloads> PlanPayloads(const Layout& layout, const ChunkPlan& chunks,
                                         Aggregate aggregate, PayloadKind dense_wire,
                                         uint32_t ballots_max);

}  // namespace signvote::run
