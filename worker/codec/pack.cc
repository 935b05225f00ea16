#include "worker/codec/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

#include "common/bits.h"
#include "common/check.h"
#include "common/coin.h"
#include "common/half_float.h"
#include "worker/codec/pack_kernels.h"

namespace signvote {
namespace {

constexpr uint64_t kUniformsPerWord = 4;

}  // namespace

namespace pack_kernels {

uint64_t OwnCoins(const PackContext& context, uint64_t first) {
  return OwnCoinWord(context.seed, context.round, context.share, first / kBitsPerWord);
}

void Uniforms(const PackContext& context, uint64_t first, uint64_t* out, size_t words) {
  FillUniforms(context.seed, context.round, context.share, first / kUniformsPerWord, {out, words});
}

bool IsFormed(const PackContext& context, const PackSegment& s) {
  if (context.formation.envelope != Envelope::kNone) return true;
  return s.u == nullptr && (context.formation != Formation() || context.clip != 1.0f || s.sparse);
}

}  // namespace pack_kernels

namespace {

double Reduce(const double (&lanes)[kSumLanes]) {
  double sums[kSumLanes];
  std::copy(std::begin(lanes), std::end(lanes), sums);
  for (size_t step = kSumLanes / 2; step > 0; step /= 2) {
    for (size_t l = 0; l < step; ++l) sums[l] += sums[l + step];
  }
  return sums[0];
}

// The lanes of one group.
struct LaneSums {
  double g_l1[kSumLanes] = {};
  double g_l2_squared[kSumLanes] = {};
  double probe_l1[kSumLanes] = {};
  double prev_inner[kSumLanes] = {};
  uint64_t nonfinite = 0;

  PackScalars Group() const {
    return {.g_l1 = Reduce(g_l1),
            .g_l2_squared = Reduce(g_l2_squared),
            .probe_l1 = Reduce(probe_l1),
            .prev_inner = Reduce(prev_inner),
            .nonfinite = nonfinite};
  }
};

void CheckSegment(const PackContext& context, const PackSegment& s) {
  const Formation& f = context.formation;
  const bool adam = f.update == Formation::Update::kAdam;
  SIGNVOTE_CHECK(s.u != nullptr || s.g == nullptr || s.state[kMomentumSlot] != nullptr ||
                 (!adam && context.coefficients.a == 0.0f && context.coefficients.c == 0.0f));
  SIGNVOTE_CHECK(s.u != nullptr || s.g == nullptr || !adam || s.state[kSquaresSlot] != nullptr);
  SIGNVOTE_CHECK(f.envelope != Envelope::kCoordinate || s.state[kEnvelopeSlot] != nullptr);
  SIGNVOTE_CHECK(s.bits_first % kBitsPerWord == 0 && s.bits_first <= s.first);
  SIGNVOTE_CHECK(s.prev_bits == nullptr || s.prev_first <= s.first);
}

// Every bit of the segment ← its own coin.
void CastCoins(const PackContext& context, const PackSegment& s) {
  for (uint64_t i = 0; i < s.count;) {
    const uint64_t at = s.first + i;
    const uint64_t in_chunk = at - s.bits_first;
    const uint64_t coins =
        OwnCoinWord(context.seed, context.round, context.share, at / kBitsPerWord);
    const uint64_t offset = at % kBitsPerWord;
    const uint64_t count = std::min<uint64_t>(kBitsPerWord - offset, s.count - i);
    if (count == kBitsPerWord) {
      std::memcpy(s.bits + in_chunk / 8, &coins, sizeof(coins));
    } else {
      for (uint64_t k = 0; k < count; ++k) {
        SetBit(s.bits, in_chunk + k, ((coins >> (offset + k)) & 1u) != 0);
      }
    }
    i += count;
  }
}

// A segment without g by kernels that read one. As g is zero, Σ|g − h| is Σ|h|, which is the first
// sum of a gradient h; without h, u stands in and its sums are dropped. Not with both, which no
// direction has: a coordinate whose u is bad counts in no sum.
PackScalars PackWithoutGradient(const PackContext& context, const PackSegment& s,
                                pack_kernels::PackFn pack) {
  PackSegment stand_in = s;
  stand_in.g = s.h != nullptr ? s.h : s.u;
  stand_in.h = nullptr;
  stand_in.prev_bits = nullptr;
  stand_in.sparse = false;
  PackContext plain = context;
  if (s.u == nullptr) {  // no state moves without a gradient, nor with it
    std::fill(std::begin(stand_in.state), std::end(stand_in.state), nullptr);
    plain.formation = {};
    plain.clip = 1.0f;
  }
  PackScalars sums;
  if (stand_in.g != nullptr) pack(plain, stand_in, &sums);
  if (s.u != nullptr) return {.nonfinite = sums.nonfinite};
  CastCoins(context, s);
  if (s.h == nullptr) return {};
  PackScalars probed{.probe_l1 = sums.g_l1};
  for (uint64_t i = 0; sums.nonfinite > 0 && i < s.count; ++i) {
    if (!std::isfinite(s.h[i])) probed.probe_l1 += static_cast<double>(std::fabs(s.h[i]));
  }
  return probed;
}

// ---- the formation, coordinate by coordinate ----------------------------------------------------

constexpr uint32_t kSignBit = 0x80000000u;
constexpr uint32_t kBf16Largest = 0x7F7Fu;

uint16_t NarrowNearest(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t size = bits & ~kSignBit;
  const uint32_t near = std::min((size + 0x7FFFu + (size >> 16 & 1u)) >> 16, kBf16Largest);
  return static_cast<uint16_t>(near | (bits & kSignBit) >> 16);
}
// REQUIRES: value ≥ 0 or NaN.
uint16_t NarrowUpwards(float value) {
  const uint32_t size = std::bit_cast<uint32_t>(value) & ~kSignBit;
  return static_cast<uint16_t>(std::min((size + 0xFFFFu) >> 16, kBf16Largest));
}

float LoadState(const void* plane, bool bf16, uint64_t i) {
  if (plane == nullptr) return 0.0f;
  return bf16 ? WidenBf16(static_cast<const uint16_t*>(plane)[i])
              : static_cast<const float*>(plane)[i];
}

float Larger(float p, float q) { return p > q ? p : q; }

constexpr float kLargest = std::numeric_limits<float>::max();
// What is not a number stays so.
float AtMostLargest(float p) { return kLargest < p ? kLargest : p; }
float WithinLargest(float p) { return Larger(-kLargest, AtMostLargest(p)); }

// u of coordinate i, and what m and v become.
struct Update {
  float u = 0, m = 0, v = 0;
};
Update UpdateOf(const PackContext& context, const PackSegment& s, uint64_t i) {
  if (s.u != nullptr) return {.u = s.u[i]};
  const Formation& f = context.formation;
  const auto [a, c] = context.coefficients;
  const float x = context.clip * s.g[i];
  const float m0 = LoadState(s.state[kMomentumSlot], f.bf16, i);
  Update next;
  next.m = WithinLargest(std::fma(c, m0, f.WeightOfGradient(c) * x));
  if (f.update != Formation::Update::kAdam) {
    next.u = std::fma(a, m0, f.WeightOfGradient(a) * x);
    return next;
  }
  const float square = x * x;
  next.v = AtMostLargest(
      std::fma(f.c2, static_cast<const float*>(s.state[kSquaresSlot])[i], (1.0f - f.c2) * square));
  const float root = std::sqrt(next.v * f.square_correction);
  next.u = (next.m * f.mean_correction) / (root + f.epsilon);
  return next;
}

// What is signed of coordinate i; its state moves on. REQUIRES: IsFormed(); g is there, or u.
float Form(const PackContext& context, const PackSegment& s, uint64_t i) {
  const Formation& f = context.formation;
  const Update next = UpdateOf(context, s, i);
  if (s.u == nullptr) {
    if (void* const m = s.state[kMomentumSlot]; m != nullptr) {
      if (f.bf16) {
        static_cast<uint16_t*>(m)[i] = NarrowNearest(next.m);
      } else {
        static_cast<float*>(m)[i] = next.m;
      }
    }
    if (f.update == Formation::Update::kAdam)
      static_cast<float*>(s.state[kSquaresSlot])[i] = next.v;
  }
  float envelope = 1.0f;
  switch (f.envelope) {
    case Envelope::kNone:
      return next.u;
    case Envelope::kCoordinate: {
      void* const r = s.state[kEnvelopeSlot];
      envelope =
          AtMostLargest(Larger(f.envelope_decay * LoadState(r, f.bf16, i), std::fabs(next.u)));
      if (f.bf16) {
        static_cast<uint16_t*>(r)[i] = NarrowUpwards(envelope);
      } else {
        static_cast<float*>(r)[i] = envelope;
      }
      break;
    }
    case Envelope::kTensor:
      envelope = s.envelope;
      break;
    case Envelope::kOne:
      break;
  }
  return std::fma(envelope,
                  NoiseOf(Uniform16(context.seed, context.round, context.share, s.first + i)),
                  next.u);
}

}  // namespace

PackScalars PackReference(const PackContext& context, const PackSegment& s) {
  CheckSegment(context, s);
  const float a = context.coefficients.a;
  const float c = context.coefficients.c;
  const float one_minus_a = 1.0f - a;
  const float one_minus_c = 1.0f - c;
  const bool formed = pack_kernels::IsFormed(context, s);
  PackScalars total, tile;
  LaneSums sums;  // of the group that `at` is in
  for (uint64_t i = 0; i < s.count; ++i) {
    const uint64_t at = s.first + i;
    const uint64_t in_chunk = at - s.bits_first;
    if (i > 0 && in_chunk % kGroupCoordinates == 0) {
      tile.Add(sums.Group());
      sums = {};
    }
    if (i > 0 && in_chunk % kTileCoordinates == 0) {
      total.Add(tile);
      tile = {};
    }
    const bool own_coin =
        (OwnCoinWord(context.seed, context.round, context.share, at / kBitsPerWord) >>
         (at % kBitsPerWord)) &
        1u;
    const float g = s.g != nullptr ? s.g[i] : 0.0f;
    bool bit = own_coin;
    if (!std::isfinite(g) || (s.u != nullptr && !std::isfinite(s.u[i]))) {
      ++sums.nonfinite;
    } else {
      if (formed) {
        if (s.u != nullptr || (s.g != nullptr && !(s.sparse && g == 0.0f))) {
          const float signed_value = Form(context, s, i);
          if (std::isfinite(signed_value)) bit = BallotBit(signed_value, own_coin);
        }
      } else if (s.u != nullptr) {
        bit = BallotBit(s.u[i], own_coin);
      } else if (s.g != nullptr) {
        float u = g;
        if (auto* const m = static_cast<float*>(s.state[kMomentumSlot]); m != nullptr) {
          u = std::fma(a, m[i], one_minus_a * g);
          m[i] = std::fma(c, m[i], one_minus_c * g);
        }
        // Only a state that was NaN before makes u one; it has no direction either.
        bit = std::isnan(u) ? own_coin : BallotBit(u, own_coin);
      }

      const size_t l = in_chunk % kSumLanes;
      sums.g_l1[l] += std::fabs(static_cast<double>(g));
      sums.g_l2_squared[l] += static_cast<double>(g) * static_cast<double>(g);
      if (s.h != nullptr) sums.probe_l1[l] += static_cast<double>(std::fabs(g - s.h[i]));
      if (s.prev_bits != nullptr) {
        sums.prev_inner[l] += GetBit(s.prev_bits, at - s.prev_first) ? static_cast<double>(g)
                                                                     : -static_cast<double>(g);
      }
    }
    SetBit(s.bits, in_chunk, bit);
  }
  tile.Add(sums.Group());
  total.Add(tile);
  return total;
}

PackScalars Pack(const PackContext& context, const PackSegment& segment, Isa isa) {
  const bool probed_without_gradient =
      segment.g == nullptr && segment.h != nullptr && segment.u != nullptr;
  if (isa == Isa::kScalar || probed_without_gradient) return PackReference(context, segment);
  CheckSegment(context, segment);
  if (segment.count == 0) return {};
  const auto pack = isa == Isa::kAvx512 ? pack_kernels::PackAvx512 : pack_kernels::PackAvx2;
  if (segment.g == nullptr) return PackWithoutGradient(context, segment, pack);
  PackScalars sums;
  pack(context, segment, &sums);
  return sums;
}

float LargestReference(const PackContext& context, const PackSegment& s) {
  float largest = 0.0f;
  if (s.g == nullptr && s.u == nullptr) return largest;
  for (uint64_t i = 0; i < s.count; ++i) {
    const float g = s.g != nullptr ? s.g[i] : 0.0f;
    if (!std::isfinite(g) || (s.u != nullptr && !std::isfinite(s.u[i]))) continue;
    if (s.u == nullptr && s.sparse && g == 0.0f) continue;
    largest = Larger(std::fabs(UpdateOf(context, s, i).u), largest);
  }
  return largest;
}

float Largest(const PackContext& context, const PackSegment& segment, Isa isa) {
  if (isa == Isa::kScalar) return LargestReference(context, segment);
  PackSegment s = segment;
  if (s.g == nullptr) s.g = s.u;  // a gradient of zero hides no u
  if (s.g == nullptr || s.count == 0) return 0.0f;
  return (isa == Isa::kAvx512 ? pack_kernels::LargestAvx512 : pack_kernels::LargestAvx2)(context,
                                                                                         s);
}

void StepReference(const PackContext& context, const PackSegment& s, float length, float* y) {
  for (uint64_t i = 0; i < s.count; ++i) {
    if (!std::isfinite(s.g[i]) || (s.sparse && s.g[i] == 0.0f)) continue;
    const float u = Form(context, s, i);
    if (!std::isfinite(u) || u == 0.0f) continue;
    if (context.formation.StepsByUpdate()) {
      y[i] = std::fma(-length, u, y[i]);
    } else {
      y[i] = u > 0.0f ? y[i] - length : y[i] + length;
    }
  }
}

void Step(const PackContext& context, const PackSegment& segment, float length, float* y, Isa isa) {
  SIGNVOTE_CHECK(segment.g != nullptr && segment.u == nullptr);
  SIGNVOTE_CHECK(context.formation.envelope == Envelope::kNone);
  CheckSegment(context, segment);
  if (isa == Isa::kScalar) return StepReference(context, segment, length, y);
  if (segment.count == 0) return;
  (isa == Isa::kAvx512 ? pack_kernels::StepAvx512 : pack_kernels::StepAvx2)(context, segment,
                                                                            length, y);
}

}  // namespace signvote
