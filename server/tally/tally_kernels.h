#pragma once
// The vote kernels behind tally.h, one table per instruction set, exposed so that tests can hold
// each to the definition. Plain pointers and no inline functions: the AVX files are compiled with
// flags of their own, and nothing that they emit may be shared with files that run on every
// machine.

#include <cstddef>
#include <cstdint>

namespace signvote::tally_kernels {

// The largest P of a table: 2^P ≥ T for T = ⌊(kTallyBallotsMax + 1) / 2⌋ + 1.
inline constexpr int kPlanesMax = 10;

// Counts the rows' ones per bit, starting from `start` = 2^P − T, and writes `bytes` bytes to out:
//   majority  bit = 1 where at least T rows have a one (plane P of the counter)
//   ties      bit = 1 where exactly T − 1 rows have a one
//   planes    the counter itself, `start` being 0: P + 1 planes of `bytes` bytes, one behind the
//             other, the plane of weight 1 first
// rows: n pointers to `bytes` bytes each, any alignment. REQUIRES: start + n < 2^(P+1).
using CountFn = void (*)(const uint8_t* const* rows, size_t n, size_t bytes, uint32_t start,
                         uint8_t* out);

struct Table {
  CountFn majority[kPlanesMax + 1];  // by P
  CountFn ties[kPlanesMax + 1];      // by P; [0] is null, no ballot ties with nobody
  CountFn planes[kPlanesMax + 1];    // by P
  // Number of ones in a XOR b; b may be null for zeros.
  uint64_t (*count_differences)(const uint8_t* a, const uint8_t* b, size_t bytes);
};

extern const Table kScalar;
extern const Table kAvx2;
extern const Table kAvx512;

}  // namespace signvote::tally_kernels
