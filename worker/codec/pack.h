#pragma once
// The fused worker kernel: read the gradient once; update the direction state; pack the ballot; add
// up the scalars.
//
//   u = fma(a, m, (1−a)·g) ;   m ← fma(c, m, (1−c)·g)        docs/algorithms.md, "Directions"
//   bit = BallotBit(u, own coin)                              common/coin.h
//
// or, where u is given: bit = BallotBit(u, own coin), and no state is touched.
//
// Every scalar is added up in the order of pack_sums.h. Raw pointers only: no torch, no gRPC.

#include <cstddef>
#include <cstdint>

#include "common/cpu.h"
#include "common/ids.h"
#include "worker/codec/pack_sums.h"

namespace signvote {

// fp32 coefficients of a linear direction. signSGD a = c = 0; Signum(β) a = c = β;
// Nesterov-Signum(β) a = β², c = β; Lion a = 0.9, c = 0.99. (1−a) and (1−c) are rounded once to
// fp32.
struct DirectionCoefficients {
  float a = 0.0f;
  float c = 0.0f;
};

// Planes of state that a direction may keep (common/direction_config.h, PlanesOf).
inline constexpr size_t kStatePlanesMax = 4;

// One segment: `count` coordinates of one tensor inside one chunk.
struct PackSegment {
  // [count] gradient of the mean loss. Null: the tensor has none. It then counts as zero in every
  // sum; where u is not given either, every coordinate casts its own coin and leaves its state
  // alone.
  const float* g = nullptr;
  // [count] what is signed. Null: computed from g and the state.
  const float* u = nullptr;
  // [count] each: the direction's state, updated in place, in order of PlanesOf(). Plane 0 is m and
  // may be null when a = c = 0; the linear directions use no other.
  float* state[kStatePlanesMax] = {};
  // [count] gradient of the same minibatch at the previous replica, or null
  const float* h = nullptr;
  // previous verdict, bit `first − prev_first` is coordinate `first`, or null
  const uint8_t* prev_bits = nullptr;
  uint64_t prev_first = 0;  // coordinate of bit 0 of prev_bits
  // ballot; bit `first − bits_first` is coordinate `first`. Bits of this segment
  uint8_t* bits = nullptr;
  // are written, all other bits of the touched bytes are kept.
  // coordinate of bit 0 of bits, the start of the chunk; a multiple of 64
  uint64_t bits_first = 0;
  uint64_t first = 0;  // first coordinate of the segment in the model
  uint64_t count = 0;
};

struct PackContext {
  DirectionCoefficients coefficients;
  uint64_t seed = 0;  // the run's
  Round round{};
  Share share{};
  // Of the last commit, for directions that correct what the vote did with their last ballot; the
  // linear ones do not read it.
  float stepsize = 0.0f;
};

PackScalars PackReference(const PackContext& context, const PackSegment& segment);
// Same result, bit for bit, for every field and every buffer.
PackScalars Pack(const PackContext& context, const PackSegment& segment, Isa isa = ActiveIsa());

}  // namespace signvote
