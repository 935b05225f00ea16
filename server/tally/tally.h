#pragma once
// The majority vote over packed ballots, without ever unpacking them.
//
// Ballots are added into bit-sliced counters (carry-save adders: Harley-Seal groups); the counters
// start at 2^P − T, so that plane P is the verdict. A tie (even number of ballots) is decided by
// the seeded coin of common/coin.h, which votes as the (n + 1)-th ballot: a non-tie of an even n
// has a margin of at least 2, so one more vote cannot flip it.

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/cpu.h"
#include "common/ids.h"
#include "common/payload_plan.h"

namespace signvote {

inline constexpr size_t kTallyBallotsMax = kBallotsMax;

// One chunk's vote.
struct TallyInput {
  // n packed ballots of `coordinates` bits each; 0 ≤ n ≤ kTallyBallotsMax
  std::span<const uint8_t* const> ballots;
  uint64_t coordinates = 0;       // bits in this chunk
  uint64_t first_coordinate = 0;  // of the model; a multiple of 64
  uint64_t seed = 0;              // the run's seed, for coins
  Round round{};
};

// Writes BytesForBits(coordinates) bytes of verdict; padding bits are zero. With no ballot every
// bit is the coin. Any alignment; never reads or writes beyond the last byte of a buffer. `isa`
// picks the implementation.
void Tally(const TallyInput& input, uint8_t* verdict, Isa isa = ActiveIsa());
// The definition, one coordinate at a time through VerdictBit().
void TallyReference(const TallyInput& input, uint8_t* verdict);

// How many ballots have bit 1, per coordinate: CountPlanes(n) planes of BytesForBits(coordinates)
// bytes each, one behind the other, the plane of weight 1 first; padding bits are zero. No coin.
// REQUIRES: n ≥ 1. Otherwise as Tally().
void TallyCounts(const TallyInput& input, uint8_t* planes, Isa isa = ActiveIsa());
// Its definition, one coordinate at a time.
void TallyCountsReference(const TallyInput& input, uint8_t* planes);

// Number of coordinates of the chunk on which `ballot` and `verdict` agree. Padding bits do not
// count.
uint64_t CountAgreement(const uint8_t* ballot, const uint8_t* verdict, uint64_t coordinates);
// Number of tied coordinates; 0 when n is odd or 0.
uint64_t CountTies(const TallyInput& input);

// Distance in bytes between ballot buffers that keeps n streams of a power-of-two length out of the
// same cache sets (69 lines more than the length, rounded up to whole lines).
constexpr size_t StaggeredStride(size_t bytes) { return (bytes + 63) / 64 * 64 + 69 * 64; }

}  // namespace signvote
