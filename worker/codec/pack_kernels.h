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

// The uniforms of the 4·words coordinates from `first` on. REQUIRES: first % 4 == 0. Compiled without
// ISA flags.
void Uniforms(const PackContext& context, uint64_t first, uint64_t* out, size_t words);

// Whether what is signed takes more than the linear formula, or a u that is given.
bool IsFormed(const PackContext& context, const PackSegment& segment);

// Packs a segment that is not empty and whose g is there, and sets *sums.
using PackFn = void (*)(const PackContext& context, const PackSegment& segment, PackScalars* sums);

void PackAvx2(const PackContext& context, const PackSegment& segment, PackScalars* sums);
void PackAvx512(const PackContext& context, const PackSegment& segment, PackScalars* sums);

// Largest() of a segment that is not empty and whose g is there.
using LargestFn = float (*)(const PackContext& context, const PackSegment& segment);

float LargestAvx2(const PackContext& context, const PackSegment& segment);
float LargestAvx512(const PackContext& context, const PackSegment& segment);

void StepAvx2(const PackContext& context, const PackSegment& segment, float length, float* y);
void StepAvx512(const PackContext& context, const PackSegment& segment, float length, float* y);

}  // namespace signvote::pack_kernels
