#pragma once
// x ← apply(x, commit): the one definition of how a replica moves, bit-identical in every
// implementation.
//
// fp32, each line one rounding, explicit fma, no contraction by a compiler (docs/algorithms.md,
// "One round"):
//   per tensor k, once:  a = γ·scale_k ;  when the commit has scales:  a = a·s_k
//                        e = γ_wd·scale_k, γ_wd = decay_step, or γ without one
//                        c = fma(−e, wd_k, 1)
//   rescale, only when ρ ≠ 1:  δ = x − x0 ;  x = fma(ρ, δ, x0)
//   step of signs:   x = fma(x, c, −a·b),  b = +1 for bit 1, −1 for bit 0  (−a·b is exact)
//   step of counts:  w = (2·count − n) / n ;  t = −a·w ;  x = fma(x, c, t)
//                    n ballots were counted, `count` of them have bit 1; 2·count − n is exact. So
//                    where all agree it is the step of signs, bit for bit
//   dense step:      t = −a·v ;  x = fma(x, c, t),  v the payload's value, bf16 widened exactly.
//                    With v = ±1 it is the step of signs, bit for bit
//   rewind:  x = x0, bit for bit

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "common/cpu.h"
#include "common/layout.h"

namespace signvote {

// What of a commit says how far a step goes.
struct StepArguments {
  float gamma = 0;
  float rho = 1;                    // rescaling about x0 before the step; 1: none
  std::optional<float> decay_step;  // stepsize of the weight decay; absent: gamma
  std::span<const float> scales;    // s_k per tensor of the layout; empty: none
};

struct TensorStep {
  float a;
  float c;
};
// REQUIRES: k < the number of tensors; scales, if any, has one for each.
TensorStep MakeTensorStep(const StepArguments& arguments, const TensorSpec& tensor, size_t k);
// Of a commit with nothing but γ.
inline TensorStep MakeTensorStep(float gamma, const TensorSpec& tensor) {
  return MakeTensorStep({.gamma = gamma}, tensor, 0);
}

// Applies the step to coordinates [first, first + count) of the model. x points to coordinate
// `first`. `bits` is a packed buffer whose bit 0 is coordinate `bits_first` (≤ first); any
// alignment. x0 points to coordinate `first` of the run's starting point; looked at only when ρ ≠ 1.
void ApplyStep(const Layout& layout, const StepArguments& arguments, uint64_t first, uint64_t count,
               const uint8_t* bits, uint64_t bits_first, const float* x0, float* x);
// A commit with nothing but γ.
inline void ApplyStep(const Layout& layout, float gamma, uint64_t first, uint64_t count,
                      const uint8_t* bits, uint64_t bits_first, float* x) {
  ApplyStep(layout, {.gamma = gamma}, first, count, bits, bits_first, nullptr, x);
}

// How many of `ballots` ballots have bit 1, for a run of coordinates: CountPlanes(ballots) planes of
// packed bits, `plane_bytes` apart, the plane of weight 1 first (common/payload_plan.h).
struct CountsView {
  const uint8_t* planes = nullptr;
  size_t plane_bytes = 0;
  uint32_t ballots = 0;  // ≥ 1
  uint64_t first = 0;    // the coordinate of each plane's bit 0
};

// The same of a step of counts. REQUIRES: counts.first ≤ first.
void ApplyCounts(const Layout& layout, const StepArguments& arguments, uint64_t first,
                 uint64_t count, const CountsView& counts, const float* x0, float* x);

// One value per coordinate, for a run of coordinates.
struct DenseView {
  const uint8_t* values = nullptr;  // little-endian; any alignment
  bool bf16 = false;                // else fp32
  uint64_t first = 0;               // the coordinate of the first value
};

// The same of a dense step. REQUIRES: dense.first ≤ first.
void ApplyDense(const Layout& layout, const StepArguments& arguments, uint64_t first,
                uint64_t count, const DenseView& dense, const float* x0, float* x);

// A rewind of `count` coordinates.
void ApplyRewind(uint64_t count, const float* x0, float* x);

// max_i |x_i| over x; NaN anywhere gives NaN. Decides the first stepsize (docs/algorithms.md,
// "Stepsize").
float MaxAbs(std::span<const float> x);

}  // namespace signvote
