#pragma once
// The mean of dense ballots, and the update that an optimizer makes of it: for tensors that move by
// full-precision gradients and not by votes (docs/algorithms.md, "Dense tensors").
//
//   ḡ = mean_j g_j, summed in fp64 in order of the ballots, rounded once
//   sgd    m ← μ·m + ḡ ;  u = m                        μ = 0 keeps no m
//   adamw  m ← β1·m + (1−β1)·ḡ ;  v ← β2·v + (1−β2)·ḡ² ;
//          u = (m/(1−β1^t)) / (√(v/(1−β2^t)) + ε)      t: steps with this one
//
// Everything in fp32, one rounding an operation. A commit carries u, and every replica moves by
// −γ·scale·u with the usual decoupled decay, so that only the server needs the optimizer. Where a
// chunk also holds coordinates that are voted on, each ballot has ±1 there, and so has the update.

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/vote_terms.h"

namespace signvote {

struct DenseOptimizer {
  enum class Kind : uint8_t { kSgd, kAdamW };
  Kind kind = Kind::kAdamW;
  float momentum = 0;                                   // μ of sgd, [0, 1)
  float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f;  // of adamw; [0, 1), > 0

  // Floats of state per coordinate.
  size_t planes() const {
    if (kind == Kind::kAdamW) return 2;
    return momentum == 0 ? 0 : 1;
  }
};
// INVALID_ARGUMENT names the flag and the range.
absl::Status CheckDenseOptimizer(const DenseOptimizer& optimizer);

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
  uint64_t step = 1;  // t
  // The state's planes, [planes()][stride] floats each, from this chunk's first coordinate on. They
  // may not overlap.
  const float* state_in = nullptr;
  float* state_out = nullptr;
  size_t stride = 0;
};

// Writes the update, PayloadBytes(kind, coordinates) of any alignment, and the state behind it.
void TallyDense(const DenseInput& input, uint8_t* update);

// Whether every value of a dense ballot's chunk is finite.
bool IsFinite(PayloadKind kind, const uint8_t* values, uint64_t coordinates);

}  // namespace signvote
