// AVX2 + FMA kernels of apply. Compiled with ISA flags: include nothing whose inline functions
// others share.
#include <immintrin.h>

#include "common/apply_bits.h"
#include "common/apply_kernels.h"

namespace signvote::apply_kernels {
namespace {

constexpr size_t kBlock = 64;  // coordinates per word of bits
constexpr size_t kLanes = 8;

// −a·b for 8 coordinates: bit k of `bits` moved to lane k's sign bit flips a.
inline __m256 Term(uint32_t bits, __m256 a) {
  const __m256i to_sign = _mm256_set_epi32(24, 25, 26, 27, 28, 29, 30, 31);
  const __m256i sign_bit = _mm256_set1_epi32(INT32_MIN);
  const __m256i shifted = _mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(bits)), to_sign);
  return _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_and_si256(shifted, sign_bit)));
}

inline __m256i TailMask(size_t n) {  // the first n lanes, n ≤ 8
  const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}

inline __m256 Rescale(__m256 x, __m256 x0, __m256 rho) {
  return _mm256_fmadd_ps(rho, _mm256_sub_ps(x, x0), x0);
}

template <bool kRescale>
inline void Run(float* x, const float* x0, size_t n, const uint8_t* bits, size_t bit_offset,
                float a, float c, float rho) {
  const __m256 va = _mm256_set1_ps(a);
  const __m256 vc = _mm256_set1_ps(c);
  const __m256 vrho = _mm256_set1_ps(rho);
  size_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    const uint64_t word = ReadWord(bits, bit_offset + i);
    for (size_t k = 0; k < kBlock; k += kLanes) {
      __m256 v = _mm256_loadu_ps(x + i + k);
      if constexpr (kRescale) v = Rescale(v, _mm256_loadu_ps(x0 + i + k), vrho);
      _mm256_storeu_ps(x + i + k,
                       _mm256_fmadd_ps(v, vc, Term(static_cast<uint32_t>(word >> k), va)));
    }
  }
  if (i == n) return;
  uint64_t word = ReadPartialWord(bits, bit_offset + i, n - i);
  for (; i < n; i += kLanes, word >>= kLanes) {
    const __m256i mask = TailMask(n - i < kLanes ? n - i : kLanes);
    __m256 v = _mm256_maskload_ps(x + i, mask);
    if constexpr (kRescale) v = Rescale(v, _mm256_maskload_ps(x0 + i, mask), vrho);
    _mm256_maskstore_ps(x + i, mask, _mm256_fmadd_ps(v, vc, Term(static_cast<uint32_t>(word), va)));
  }
}

void Step(float* x, size_t n, const uint8_t* bits, size_t bit_offset, float a, float c) {
  Run<false>(x, nullptr, n, bits, bit_offset, a, c, 1.0f);
}

void RescaledStep(float* x, const float* x0, size_t n, const uint8_t* bits, size_t bit_offset,
                  float a, float c, float rho) {
  Run<true>(x, x0, n, bits, bit_offset, a, c, rho);
}

}  // namespace

const Table kAvx2 = {Step, RescaledStep};

}  // namespace signvote::apply_kernels
