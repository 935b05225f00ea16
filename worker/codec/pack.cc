#include "worker/codec/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

#include "common/bits.h"
#include "common/check.h"
#include "common/coin.h"
#include "worker/codec/pack_kernels.h"

namespace signvote {
namespace pack_kernels {

uint64_t OwnCoins(const PackContext& context, uint64_t first) {
  return OwnCoinWord(context.seed, context.round, context.share, first / kBitsPerWord);
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
  SIGNVOTE_CHECK(s.u != nullptr || s.g == nullptr || s.state[0] != nullptr ||
                 (context.coefficients.a == 0.0f && context.coefficients.c == 0.0f));
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
  std::fill(std::begin(stand_in.state), std::end(stand_in.state), nullptr);
  PackScalars sums;
  if (stand_in.g != nullptr) pack(context, stand_in, &sums);
  if (s.u != nullptr) return {.nonfinite = sums.nonfinite};
  CastCoins(context, s);
  if (s.h == nullptr) return {};
  PackScalars probed{.probe_l1 = sums.g_l1};
  for (uint64_t i = 0; sums.nonfinite > 0 && i < s.count; ++i) {
    if (!std::isfinite(s.h[i])) probed.probe_l1 += static_cast<double>(std::fabs(s.h[i]));
  }
  return probed;
}

}  // namespace

PackScalars PackReference(const PackContext& context, const PackSegment& s) {
  CheckSegment(context, s);
  const float a = context.coefficients.a;
  const float c = context.coefficients.c;
  const float one_minus_a = 1.0f - a;
  const float one_minus_c = 1.0f - c;
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
      if (s.u != nullptr) {
        bit = BallotBit(s.u[i], own_coin);
      } else if (s.g != nullptr) {
        float u = g;
        if (float* const m = s.state[0]; m != nullptr) {
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

}  // namespace signvote
