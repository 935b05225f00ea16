#pragma once
// x ← apply(x, commit): the one definition of how a replica moves, bit-identical in every
// implementation.
//
// fp32, each line one rounding, explicit fma, no contraction by a compiler (docs/algorithms.md,
// "One round"):
//   per tensor k, once:  a = γ·scale_k ;  c = fma(−a, wd_k, 1)
//   rescale, only when ρ ≠ 1:  δ = x − x0 ;  x = fma(ρ, δ, x0)
//   step:  x = fma(x, c, −a·b),  b = +1 for bit 1, −1 for bit 0  (−a·b is exact)

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/cpu.h"
#include "common/layout.h"

namespace signvote {

struct TensorStep {
  float a;  // γ·scale_k
  float c;  // fma(−a, wd_k, 1)
};
TensorStep MakeTensorStep(float gamma, const TensorSpec& tensor);

// Applies the step to coordinates [first, first + count) of the model. x points to coordinate
// `first`. `bits` is a packed buffer whose bit 0 is coordinate `bits_first` (≤ first); any
// alignment. ρ = 1.
void ApplyStep(const Layout& layout, float gamma, uint64_t first, uint64_t count,
               const uint8_t* bits, uint64_t bits_first, float* x);

// The same with ρ ≠ 1; x0 points to coordinate `first` of the run's starting point.
void ApplyRescaledStep(const Layout& layout, float gamma, float rho, uint64_t first, uint64_t count,
                       const uint8_t* bits, uint64_t bits_first, const float* x0, float* x);

// max_i |x_i| over x; NaN anywhere gives NaN. Decides the first stepsize (docs/algorithms.md,
// "Stepsize").
float MaxAbs(std::span<const float> x);

}  // namespace signvote
