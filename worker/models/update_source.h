#pragma once
// Internal to worker/models: sources of ballots that need whole tensors, with LibTorch's arithmetic
// on the model's device. docs/algorithms/muon.md, docs/algorithms/error_feedback.md.

#include <cstdint>
#include <memory>

#include <c10/core/Device.h>  // tidy: allow(torch) only .cc files beside it include this header

#include "absl/status/statusor.h"
#include "common/direction_config.h"
#include "common/layout.h"
#include "worker/vote/ballot_source.h"

namespace signvote {

//   Muon            m as Nesterov-Signum(β)'s; u = fma(β², m, (1−β²)·x); of a matrix its polar factor
//                   by five Newton-Schulz steps, rows × the product of the other dimensions; x = clip·g
//   error feedback  p = γ_prev·x + e, u = p;  s_k = ‖p_k‖₁/d_k per tensor is displacement_mean(). Once
//                   the ballot is settled: applied, e ← keep·(p − s_k·b), b its bit, where p = 0 the
//                   own coin;  not applied, e ← keep·p;  withdrawn, e stays. γ_prev is 0 in round 0;
//                   otherwise SetStepsize() or RestoreState() tells it, and Missed() forgets it
//
// Null for every other direction. A coordinate whose gradient is not finite, or of a sparse tensor
// exactly zero, and every one of a tensor without gradient, leaves its state alone and has u = 0.
// Error feedback takes sparse tensors as usual ones: a server refuses the pair.
// `seed` is the run's, of the coins. RESOURCE_EXHAUSTED: no memory for state and u, 8 bytes a
// coordinate (6 with bfloat16).
absl::StatusOr<std::unique_ptr<BallotSource>> MakeUpdateSource(const Layout* layout,
                                                               const DirectionConfig& config,
                                                               uint64_t seed, c10::Device device);

}  // namespace signvote
