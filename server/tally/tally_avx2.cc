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

// Ones of each nibble by table lookup, added up per eight bytes: quicker than a popcount per word.
class OnesCounter {
 public:
  inline __attribute__((always_inline)) void Add(Vec v) {
    const Vec table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                       0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const Vec nibble = _mm256_set1_epi8(15);
    const Vec low = _mm256_shuffle_epi8(table, And(v, nibble));
    const Vec high = _mm256_shuffle_epi8(table, And(_mm256_srli_epi16(v, 4), nibble));
    total_ = _mm256_add_epi64(total_, _mm256_sad_epu8(_mm256_add_epi8(low, high), Fill(false)));
  }
  uint64_t Total() const {
    alignas(64) uint64_t words[kVecBytes / 8];
    _mm256_store_si256(static_cast<Vec*>(static_cast<void*>(words)), total_);
    uint64_t sum = 0;
    for (const uint64_t word : words) sum += word;
    return sum;
  }

 private:
  Vec total_ = Fill(false);
};

#include "server/tally/tally_body.inc"

}  // namespace

constinit const Table kAvx2 = MakeTable();

}  // namespace signvote::tally_kernels
