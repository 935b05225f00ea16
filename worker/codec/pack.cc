#include "worker/codec/pack.h"

#include <cmath>

#include "common/bits.h"
#include "common/check.h"
#include "common/coin.h"
#include "worker/codec/pack_kernels.h"

namespace signvote {
namespace pack_kernels {

uint64_t OwnCoins(const PackContext& context, uint64_t first) {
  const uint64_t word = first / kBitsPerWord;
  const unsigned shift = static_cast<unsigned>(first % kBitsPerWord);
  const uint64_t low = OwnCoinWord(context.seed, context.round, context.share, word);
  if (shift == 0) return low;
  const uint64_t high = OwnCoinWord(context.seed, context.round, context.share, word + 1);
  return (low >> shift) | (high << (kBitsPerWord - shift));
}

}  // namespace pack_kernels

namespace {

using pack_kernels::kLanes;
using pack_kernels::LaneSums;

double Reduce(double (&lanes)[kLanes]) {
  for (size_t step = kLanes / 2; step > 0; step /= 2) {
    for (size_t l = 0; l < step; ++l) lanes[l] += lanes[l + step];
  }
  return lanes[0];
}

PackScalars Reduce(LaneSums& sums) {
  return {.g_l1 = Reduce(sums.g_l1),
          .g_l2_squared = Reduce(sums.g_l2_squared),
          .probe_l1 = Reduce(sums.probe_l1),
          .prev_inner = Reduce(sums.prev_inner),
          .nonfinite = sums.nonfinite};
}

void CheckSegment(const PackContext& context, const PackSegment& s) {
  SIGNVOTE_CHECK(s.m != nullptr ||
                 (context.coefficients.a == 0.0f && context.coefficients.c == 0.0f));
  SIGNVOTE_CHECK(s.bits_first % kBitsPerWord == 0 && s.bits_first <= s.first);
  SIGNVOTE_CHECK(s.prev_bits == nullptr || s.prev_first <= s.first);
}

}  // namespace

PackScalars PackReference(const PackContext& context, const PackSegment& s) {
  CheckSegment(context, s);
  const float a = context.coefficients.a;
  const float c = context.coefficients.c;
  const float one_minus_a = 1.0f - a;
  const float one_minus_c = 1.0f - c;
  LaneSums sums;
  for (uint64_t i = 0; i < s.count; ++i) {
    const uint64_t at = s.first + i;
    const bool own_coin = pack_kernels::OwnCoins(context, at) & 1u;
    const float g = s.g[i];
    bool bit = own_coin;
    if (!std::isfinite(g) || (s.h != nullptr && !std::isfinite(s.h[i]))) {
      ++sums.nonfinite;
    } else {
      float u = g;
      if (s.m != nullptr) {
        const float m = s.m[i];
        u = std::fma(a, m, one_minus_a * g);
        s.m[i] = std::fma(c, m, one_minus_c * g);
      }
      // Only a state that was NaN before makes u one; it has no direction either.
      bit = std::isnan(u) ? own_coin : BallotBit(u, own_coin);

      const size_t l = i % kLanes;
      sums.g_l1[l] += std::fabs(static_cast<double>(g));
      sums.g_l2_squared[l] += static_cast<double>(g) * static_cast<double>(g);
      if (s.h != nullptr) sums.probe_l1[l] += static_cast<double>(std::fabs(g - s.h[i]));
      if (s.prev_bits != nullptr) {
        sums.prev_inner[l] += GetBit(s.prev_bits, at - s.prev_first) ? static_cast<double>(g)
                                                                     : -static_cast<double>(g);
      }
    }
    SetBit(s.bits, at - s.bits_first, bit);
  }
  return Reduce(sums);
}

PackScalars Pack(const PackContext& context, const PackSegment& segment, Isa isa) {
  if (isa == Isa::kScalar) return PackReference(context, segment);
  CheckSegment(context, segment);
  if (segment.count == 0) return {};
  LaneSums sums;
  const auto pack = isa == Isa::kAvx512 ? pack_kernels::PackAvx512 : pack_kernels::PackAvx2;
  pack(context, segment, &sums);
  return Reduce(sums);
}

}  // namespace signvote
