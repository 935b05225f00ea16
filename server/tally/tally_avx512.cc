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

// Ones of each nibble by table lookup, added up per eight bytes: quicker than a popcount per word.
class OnesCounter {
 public:
  inline __attribute__((always_inline)) void Add(Vec v) {
    const Vec table =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const Vec nibble = _mm512_set1_epi8(15);
    const Vec low = _mm512_shuffle_epi8(table, And(v, nibble));
    const Vec high = _mm512_shuffle_epi8(table, And(_mm512_srli_epi16(v, 4), nibble));
    total_ = _mm512_add_epi64(total_, _mm512_sad_epu8(_mm512_add_epi8(low, high), Fill(false)));
  }
  uint64_t Total() const {
    alignas(64) uint64_t words[kVecBytes / 8];
    _mm512_store_si512(words, total_);
    uint64_t sum = 0;
    for (const uint64_t word : words) sum += word;
    return sum;
  }

 private:
  Vec total_ = Fill(false);
};

#include "server/tally/tally_body.inc"

}  // namespace

constinit const Table kAvx512 = MakeTable();

}  // namespace signvote::tally_kernels
