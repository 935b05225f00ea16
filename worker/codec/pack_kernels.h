#pragma once
// The AVX kernels behind pack.h. Plain structs and pointers only: the kernel files are compiled
// with ISA flags of their own, and no inline function that other files share may be emitted there.

#include <cstddef>
#include <cstdint>

#include "worker/codec/pack.h"

namespace signvote::pack_kernels {

inline constexpr size_t kLanes = 16;

// The sixteen partial sums of each scalar, before the reduction that pack.h states.
struct LaneSums {
  double g_l1[kLanes] = {};
  double g_l2_squared[kLanes] = {};
  double probe_l1[kLanes] = {};
  double prev_inner[kLanes] = {};
  uint64_t nonfinite = 0;
};

// 64 own coins, bit k for coordinate first + k; `first` need not be a multiple of 64. Compiled
// without ISA flags.
uint64_t OwnCoins(const PackContext& context, uint64_t first);

// Packs a segment and adds its terms to *sums.
using PackFn = void (*)(const PackContext& context, const PackSegment& segment, LaneSums* sums);

void PackAvx2(const PackContext& context, const PackSegment& segment, LaneSums* sums);
void PackAvx512(const PackContext& context, const PackSegment& segment, LaneSums* sums);

}  // namespace signvote::pack_kernels
