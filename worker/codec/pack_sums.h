#pragma once
// The scalars of a ballot and the order in which they are added up. The order is the same on every
// instruction set and on every GPU, so the sums are bit-identical everywhere. Plain structs only:
// device code includes this.
//
// Coordinates are counted from the start of the chunk. Every sum of a segment is fp64 and starts at
// +0:
//   lane    16 lanes share a group of 256 coordinates: lane l adds those with i ≡ l (mod 16),
//           ascending (at most 16)
//   group   lane l += lane l+8, then +4, +2, +1: the sum of the group is in lane 0
//   tile    4096 coordinates: the sums of its 16 groups, ascending
//   segment the sums of its tiles, ascending
// A coordinate outside the segment contributes nothing; as no sum is ever −0, adding a zero is the
// same.
//
// So a group is the share of half a warp and a tile that of a block: a lane's sum stays in one
// thread's register, and nothing depends on which block comes first.
// docs/decisions/0008-order-of-the-sums.md.

#include <cstddef>
#include <cstdint>

namespace signvote {

inline constexpr uint32_t kSumLanes = 16;
inline constexpr uint32_t kGroupCoordinates = 256;
inline constexpr uint32_t kTileCoordinates = 4096;

// Sums over the coordinates whose g_i is finite.
struct PackScalars {
  double g_l1 = 0;          // Σ|g_i|
  double g_l2_squared = 0;  // Σ g_i²
  // Σ|g_i − h_i|, each difference rounded to fp32; 0 without h, not finite where some h_i is not
  double probe_l1 = 0;
  // Σ g_i·b_i with b_i = ±1 from prev_bits; 0 without prev_bits; step_scale not included
  double prev_inner = 0;
  // coordinates whose g_i or given u_i is NaN or infinite: state untouched, own coin cast, in
  // no sum
  uint64_t nonfinite = 0;

  // One step of the two upper levels: *this += part, field by field.
  constexpr void Add(const PackScalars& part) {
    g_l1 += part.g_l1;
    g_l2_squared += part.g_l2_squared;
    probe_l1 += part.probe_l1;
    prev_inner += part.prev_inner;
    nonfinite += part.nonfinite;
  }
};
static_assert(sizeof(PackScalars) == 40, "copied from devices as it is");

}  // namespace signvote
