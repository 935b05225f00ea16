#pragma once
// The AVX kernels behind pack.h. Plain structs and pointers only: the kernel files are compiled
// with ISA flags of their own, and no inline function that other files share may be emitted there.

#include <cstddef>
#include <cstdint>

#include "worker/codec/pack.h"

namespace signvote::pack_kernels {

// 64 own coins, bit k for coordinate first + k. REQUIRES: first % 64 == 0. Compiled without ISA
// flags.
uint64_t OwnCoins(const PackContext& context, uint64_t first);

// Packs a segment that is not empty and whose g is there, and sets *sums.
using PackFn = void (*)(const PackContext& context, const PackSegment& segment, PackScalars* sums);

void PackAvx2(const PackContext& context, const PackSegment& segment, PackScalars* sums);
void PackAvx512(const PackContext& context, const PackSegment& segment, PackScalars* sums);

}  // namespace signvote::pack_kernels
