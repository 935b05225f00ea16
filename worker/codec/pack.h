#pragma once
// The fused worker kernel: read the gradient once; update the direction state; pack the ballot; add
// up the scalars.
//
//   u = fma(a, m, (1−a)·g) ;   m ← fma(c, m, (1−c)·g)        docs/algorithms.md, "Directions"
//   bit = BallotBit(u, own coin)                              common/coin.h
//
// or, where u is given: bit = BallotBit(u, own coin), and no state is touched.
//
// A Formation or a clip makes what is signed, s, in more steps; each operation one fp32 rounding:
//   x = clip·g
//   kMean   u = fma(a, m, (1−a)·x)        m ← fma(c, m, (1−c)·x)
//   kSum    u = fma(a, m, x)              m ← fma(c, m, x)
//   kAdam   m ← fma(c, m, (1−c)·x)        v ← fma(c2, v, (1−c2)·(x·x))
//           u = (m·mean_correction) / (√(v·square_correction) + ε)
//   given   u
//   noise   s = fma(R, n, u),  n = NoiseOf(Uniform16(…))      common/envelope.h, common/coin.h
//           kCoordinate: R = r ← max(ρ·r, |u|);  kTensor: R = PackSegment::envelope;  kOne: R = 1
//   none    s = u
//   bit = BallotBit(s, own coin); an s that is not finite casts the coin
// m, v and r end at the largest finite fp32, which a gradient beyond reason may pass: an infinite one
// would never come back, and this coordinate would cast coins for ever. u and R are used before they
// are rounded to a state of bfloat16: m to the nearest, ties to even, r upwards, so that |m| ≤ r holds
// for what is kept too; beyond the largest bfloat16 both are it. max(p, q) is p where p > q, else q:
// what is not a number in r does not stay.
//
// Every scalar is added up in the order of pack_sums.h. Raw pointers only: no torch, no gRPC.

#include <cstddef>
#include <cstdint>

#include "common/cpu.h"
#include "common/ids.h"
#include "worker/codec/formation.h"
#include "worker/codec/pack_sums.h"

namespace signvote {

// fp32 coefficients of a linear direction. signSGD a = c = 0; Signum(β) a = c = β;
// Nesterov-Signum(β) a = β², c = β; Lion a = 0.9, c = 0.99. (1−a) and (1−c) are rounded once to
// fp32.
struct DirectionCoefficients {
  float a = 0.0f;
  float c = 0.0f;
};

// Where a kernel finds what a direction keeps per coordinate (common/direction_config.h, PlanesOf).
enum StateSlot : size_t { kMomentumSlot, kSquaresSlot, kEnvelopeSlot, kStateSlots };

// One segment: `count` coordinates of one tensor inside one chunk.
struct PackSegment {
  // [count] gradient of the mean loss. Null: the tensor has none. It then counts as zero in every
  // sum; where u is not given either, every coordinate casts its own coin and leaves its state
  // alone.
  const float* g = nullptr;
  // [count] what is signed. Null: computed from g and the state.
  const float* u = nullptr;
  // [count] each: the direction's state, updated in place. fp32, but m and r as Formation::bf16
  // says. m may be null when a = c = 0; v and r are there where the formation has them.
  void* state[kStateSlots] = {};
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
  float envelope = 0.0f;  // Envelope::kTensor: of the tensor
  // A coordinate whose gradient is exactly zero casts its own coin and leaves its state alone, as
  // those of a tensor without gradient do. Not looked at where u is given.
  bool sparse = false;
};

struct PackContext {
  DirectionCoefficients coefficients;
  Formation formation;
  float clip = 1.0f;  // what a clipped gradient counts times, before the direction; sums do not
  uint64_t seed = 0;  // the run's
  Round round{};
  Share share{};
};

PackScalars PackReference(const PackContext& context, const PackSegment& segment);
// Same result, bit for bit, for every field and every buffer.
PackScalars Pack(const PackContext& context, const PackSegment& segment, Isa isa = ActiveIsa());

// max |u_i| over the segment's coordinates whose gradient (and u, where it is given) is finite, as
// packing it would form u now; no state is touched. 0 without a gradient and without u.
float LargestReference(const PackContext& context, const PackSegment& segment);
float Largest(const PackContext& context, const PackSegment& segment, Isa isa = ActiveIsa());

// A local step of a segment in place of its ballot: the state moves on as packing it would, and
//   y_i ← fma(−length, sgn0(u_i), y_i),   sgn0(0) = 0;   of Adam and the sum  fma(−length, u_i, y_i)
// with u_i as it would be signed; y_i stays where a coin would be cast. y: [count]; of the segment g,
// state and sparse are read. REQUIRES: g is there, u is not; no noise.
void StepReference(const PackContext& context, const PackSegment& segment, float length, float* y);
void Step(const PackContext& context, const PackSegment& segment, float length, float* y,
          Isa isa = ActiveIsa());

}  // namespace signvote
