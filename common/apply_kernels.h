#pragma once
// The kernels behind apply.h, one per instruction set, exposed so that tests can hold each to the
// scalar definition.

#include <cstddef>
#include <cstdint>

#include "common/cpu.h"

namespace signvote::apply_kernels {

// x[i] = fma(x[i], c, bit(bit_offset + i) ? −a : a) for i in [0, n). No alignment required; reads
// no byte of `bits` beyond the one that holds bit bit_offset + n − 1.
using StepFn = void (*)(float* x, size_t n, const uint8_t* bits, size_t bit_offset, float a,
                        float c);
// As StepFn after x[i] = fma(rho, x[i] − x0[i], x0[i]).
using RescaledStepFn = void (*)(float* x, const float* x0, size_t n, const uint8_t* bits,
                                size_t bit_offset, float a, float c, float rho);

struct Table {
  StepFn step;
  RescaledStepFn rescaled_step;
};

extern const Table kScalar;
extern const Table kAvx2;
extern const Table kAvx512;

inline constexpr TablesByIsa<Table> kTables{kScalar, kAvx2, kAvx512};

}  // namespace signvote::apply_kernels
