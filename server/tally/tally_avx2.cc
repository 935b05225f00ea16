// Compiled with AVX2 flags: reached only through kAvx2, on machines that have it.

#include <immintrin.h>

#include <cstring>

#include "server/tally/tally_kernels.h"

namespace signvote::tally_kernels {
namespace {

using Vec = __m256i;
constexpr size_t kVecBytes = 32;

inline Vec Load(const uint8_t* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(p)));
}
inline void Store(uint8_t* p, Vec v) {
  _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(p)), v);
}
inline Vec Fill(bool ones) { return _mm256_set1_epi32(ones ? -1 : 0); }
inline Vec Xor(Vec a, Vec b) { return _mm256_xor_si256(a, b); }
inline Vec And(Vec a, Vec b) { return _mm256_and_si256(a, b); }
inline Vec AndNot(Vec not_a, Vec b) { return _mm256_andnot_si256(not_a, b); }
// sum ← sum ⊕ a ⊕ b; returns the carries.
inline Vec CarrySaveAdd(Vec& sum, Vec a, Vec b) {
  const Vec half = Xor(a, b);
  const Vec carry = _mm256_or_si256(And(a, b), And(half, sum));
  sum = Xor(half, sum);
  return carry;
}

#include "server/tally/tally_body.inc"

}  // namespace

constinit const Table kAvx2 = MakeTable();

}  // namespace signvote::tally_kernels
