// Compiled with AVX-512 flags: reached only through kAvx512, on machines that have F, BW, DQ and
// VL.

#include <immintrin.h>

#include <cstring>

#include "server/tally/tally_kernels.h"

namespace signvote::tally_kernels {
namespace {

using Vec = __m512i;
constexpr size_t kVecBytes = 64;

inline Vec Load(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void Store(uint8_t* p, Vec v) { _mm512_storeu_si512(p, v); }
inline Vec Fill(bool ones) { return _mm512_set1_epi32(ones ? -1 : 0); }
inline Vec Xor(Vec a, Vec b) { return _mm512_xor_si512(a, b); }
inline Vec And(Vec a, Vec b) { return _mm512_and_si512(a, b); }
// ¬a ∧ b is 0x0C; _mm512_andnot_si512 makes GCC 12 warn about its own header.
inline Vec AndNot(Vec not_a, Vec b) { return _mm512_ternarylogic_epi64(not_a, b, b, 0x0C); }
// sum ← sum ⊕ a ⊕ b; returns the carries. Truth tables: 0x96 is the parity of three, 0xE8 their
// majority.
inline Vec CarrySaveAdd(Vec& sum, Vec a, Vec b) {
  const Vec carry = _mm512_ternarylogic_epi64(sum, a, b, 0xE8);
  sum = _mm512_ternarylogic_epi64(sum, a, b, 0x96);
  return carry;
}

#include "server/tally/tally_body.inc"

}  // namespace

constinit const Table kAvx512 = MakeTable();

}  // namespace signvote::tally_kernels
