#pragma once
// The fused worker kernel: read the gradient once; update the direction state; pack the ballot; add up the scalars.
//
//   u = fma(a, m, (1−a)·g) ;   m ← fma(c, m, (1−c)·g)        docs/algorithms.md, "Directions"
//   bit = BallotBit(u, own coin)                              common/coin.h
//
// Raw pointers only: no torch, no gRPC, no absl, so that nvcc can include it.

#include <cstddef>
#include <cstdint>

#include "common/cpu.h"
#include "common/ids.h"

namespace signvote {

// fp32 coefficients of a linear direction. signSGD a = c = 0; Signum(β) a = c = β; Nesterov-Signum(β) a = β², c = β;
// Lion a = 0.9, c = 0.99. (1−a) and (1−c) are rounded once to fp32.
struct DirectionCoefficients {
  float a = 0.0f;
  float c = 0.0f;
};

// Sums over the finite coordinates of one segment, in fp64. Order of every sum, in each implementation: lane l of 16
// adds coordinates i ≡ l (mod 16) of the segment in ascending order; then lane l += lane l+8, +4, +2, +1. So the sums
// are bit-identical on every instruction set.
struct PackScalars {
  double g_l1 = 0;          // Σ|g_i|
  double g_l2_squared = 0;  // Σ g_i²
  double probe_l1 = 0;      // Σ|g_i − h_i|, each difference rounded to fp32; 0 without h
  double prev_inner = 0;    // Σ g_i·b_i with b_i = ±1 from prev_bits; 0 without prev_bits; step_scale not included
  uint64_t nonfinite = 0;   // coordinates whose g_i (or h_i) is NaN or infinite: state untouched, own coin cast, in no sum
};

// One segment: `count` coordinates of one tensor inside one chunk.
struct PackSegment {
  const float* g = nullptr;            // [count] gradient of the mean loss
  float* m = nullptr;                  // [count] direction state, updated in place; may be null when a = c = 0
  const float* h = nullptr;            // [count] gradient of the same minibatch at the previous replica, or null
  const uint8_t* prev_bits = nullptr;  // previous verdict, bit `first − prev_first` is coordinate `first`, or null
  uint64_t prev_first = 0;             // coordinate of bit 0 of prev_bits
  uint8_t* bits = nullptr;             // ballot; bit `first − bits_first` is coordinate `first`. Bits of this segment
                                       // are written, all other bits of the touched bytes are kept.
  uint64_t bits_first = 0;             // coordinate of bit 0 of bits; a multiple of 64
  uint64_t first = 0;                  // first coordinate of the segment in the model
  uint64_t count = 0;
};

struct PackContext {
  DirectionCoefficients coefficients;
  uint64_t seed = 0;  // the run's
  Round round{};
  Share share{};
};

PackScalars PackReference(const PackContext& context, const PackSegment& segment);
// Same result, bit for bit, for every field and every buffer.
PackScalars Pack(const PackContext& context, const PackSegment& segment, Isa isa = ActiveIsa());

}  // namespace signvote
