#pragma once
// The mean of dense ballots, and the update that an optimizer makes of it: for tensors that move by
// full-precision gradients and not by votes (docs/algorithms.md, "Dense tensors").
//
//   ḡ = mean_j g_j, summed in fp64 in order of the ballots, rounded once
//   u = the optimizer's of ḡ (dense_optimizer.h)
//
// A commit carries u, and every replica moves by −γ·scale·u with the usual decoupled decay, so that
// only the server needs the optimizer. Where a chunk also holds coordinates that are voted on, each
// ballot has ±1 there, and so has the update.

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/ids.h"
#include "common/layout.h"
#include "common/vote_terms.h"
#include "server/tally/dense_optimizer.h"

namespace signvote {

// One chunk.
struct DenseInput {
  std::span<const uint8_t* const> ballots;  // n ≥ 1, in order; `coordinates` values each
  PayloadKind kind = PayloadKind::kFp32;    // of ballots and update: fp32 or bf16
  const Layout* layout = nullptr;
  uint64_t first_coordinate = 0;  // of the model
  uint64_t coordinates = 0;
  Aggregate aggregate = Aggregate::kVote;  // of what is voted on in between
  uint64_t seed = 0;                       // the run's, for coins
  Round round{};
  DenseOptimizer optimizer;
  uint64_t step = 1;         // the optimizer's t
  OptimizerScalars scalars;  // before it
  OptimizerPlanes planes;    // from this chunk's first coordinate on; not read without a state
};

// Writes the update, PayloadBytes(kind, coordinates) of any alignment, and the whole state behind it: 0
// where coordinates are voted on. Returns the chunk's part of the optimizer's q.
double TallyDense(const DenseInput& input, uint8_t* update);

// Whether every value of a dense ballot's chunk may stand there (common/dense_value.h).
bool AreDenseValues(PayloadKind kind, const uint8_t* values, uint64_t coordinates);

}  // namespace signvote
