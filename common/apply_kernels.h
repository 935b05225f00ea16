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

// Where the counts of coordinate i lie: bit (bit_offset + i) of each of `planes` planes, which are
// `plane_bytes` apart.
struct Counts {
  const uint8_t* bits;
  size_t plane_bytes;
  uint32_t planes;   // ≤ kCountPlanesMax
  uint32_t ballots;  // n, ≥ 1
  size_t bit_offset;
};
inline constexpr uint32_t kCountPlanesMax = 11;  // CountPlanes(kBallotsMax)
// w = (2·count − n) / n ;  t = −(a·w) ;  x[i] = fma(x[i], c, t), for i in [0, n). As StepFn.
using CountsFn = void (*)(float* x, size_t n, const Counts& counts, float a, float c);
using RescaledCountsFn = void (*)(float* x, const float* x0, size_t n, const Counts& counts,
                                  float a, float c, float rho);

// t = −(a·v[i]) ;  x[i] = fma(x[i], c, t), v little-endian values of any alignment. As StepFn.
using DenseFn = void (*)(float* x, size_t n, const uint8_t* v, float a, float c);
using RescaledDenseFn = void (*)(float* x, const float* x0, size_t n, const uint8_t* v, float a,
                                 float c, float rho);

struct Table {
  StepFn step;
  RescaledStepFn rescaled_step;
  CountsFn counts;
  RescaledCountsFn rescaled_counts;
  DenseFn fp32, bf16;  // by what v is
  RescaledDenseFn rescaled_fp32, rescaled_bf16;
};

extern const Table kScalar;
extern const Table kAvx2;
extern const Table kAvx512;

inline constexpr TablesByIsa<Table> kTables{kScalar, kAvx2, kAvx512};

}  // namespace signvote::apply_kernels
