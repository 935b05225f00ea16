// AVX2 + FMA kernels of apply. Compiled with ISA flags: include nothing whose inline functions
// others share.
#include <immintrin.h>

#include <cstring>

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

// −(a·w) for 8 coordinates, of which bit k of each word is the first.
inline __m256 CountsTerm(const uint64_t* words, uint32_t planes, size_t k, __m256i ballots,
                         __m256 divisor, __m256 minus_a) {
  const __m256i lane_bit = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
  __m256i twice = _mm256_setzero_si256();  // 2·count
  for (uint32_t p = 0; p < planes; ++p) {
    const __m256i bits = _mm256_set1_epi32(static_cast<int>(static_cast<uint32_t>(words[p] >> k)));
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(bits, lane_bit), lane_bit);
    const __m256i weight = _mm256_set1_epi32(static_cast<int>(2u << p));
    twice = _mm256_add_epi32(twice, _mm256_and_si256(set, weight));
  }
  const __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(twice, ballots));
  return _mm256_mul_ps(_mm256_div_ps(sum, divisor), minus_a);
}

template <bool kRescale>
inline void RunCounts(float* x, const float* x0, size_t n, const Counts& counts, float a, float c,
                      float rho) {
  const __m256i ballots = _mm256_set1_epi32(static_cast<int>(counts.ballots));
  const __m256 divisor = _mm256_set1_ps(static_cast<float>(counts.ballots));
  const __m256 minus_a = _mm256_set1_ps(-a);
  const __m256 vc = _mm256_set1_ps(c);
  const __m256 vrho = _mm256_set1_ps(rho);
  uint64_t words[kCountPlanesMax];
  size_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    for (uint32_t p = 0; p < counts.planes; ++p) {
      words[p] = ReadWord(counts.bits + p * counts.plane_bytes, counts.bit_offset + i);
    }
    for (size_t k = 0; k < kBlock; k += kLanes) {
      __m256 v = _mm256_loadu_ps(x + i + k);
      if constexpr (kRescale) v = Rescale(v, _mm256_loadu_ps(x0 + i + k), vrho);
      const __m256 term = CountsTerm(words, counts.planes, k, ballots, divisor, minus_a);
      _mm256_storeu_ps(x + i + k, _mm256_fmadd_ps(v, vc, term));
    }
  }
  if (i == n) return;
  for (uint32_t p = 0; p < counts.planes; ++p) {
    words[p] = ReadPartialWord(counts.bits + p * counts.plane_bytes, counts.bit_offset + i, n - i);
  }
  for (size_t k = 0; i + k < n; k += kLanes) {
    const __m256i mask = TailMask(n - i - k < kLanes ? n - i - k : kLanes);
    __m256 v = _mm256_maskload_ps(x + i + k, mask);
    if constexpr (kRescale) v = Rescale(v, _mm256_maskload_ps(x0 + i + k, mask), vrho);
    const __m256 term = CountsTerm(words, counts.planes, k, ballots, divisor, minus_a);
    _mm256_maskstore_ps(x + i + k, mask, _mm256_fmadd_ps(v, vc, term));
  }
}

void CountsStep(float* x, size_t n, const Counts& counts, float a, float c) {
  RunCounts<false>(x, nullptr, n, counts, a, c, 1.0f);
}

void RescaledCountsStep(float* x, const float* x0, size_t n, const Counts& counts, float a, float c,
                        float rho) {
  RunCounts<true>(x, x0, n, counts, a, c, rho);
}

// 8 values, widened.
template <bool kBf16>
inline __m256 LoadValues(const uint8_t* v) {
  if constexpr (kBf16) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(
            _mm_loadu_si128(static_cast<const __m128i*>(static_cast<const void*>(v)))),
        16));
  } else {
    return _mm256_loadu_ps(static_cast<const float*>(static_cast<const void*>(v)));
  }
}

template <bool kRescale, bool kBf16>
inline void RunDense(float* x, const float* x0, size_t n, const uint8_t* values, float a, float c,
                     float rho) {
  constexpr size_t kBytes = kBf16 ? 2 : 4;
  const __m256 minus_a = _mm256_set1_ps(-a);
  const __m256 vc = _mm256_set1_ps(c);
  const __m256 vrho = _mm256_set1_ps(rho);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    __m256 v = _mm256_loadu_ps(x + i);
    if constexpr (kRescale) v = Rescale(v, _mm256_loadu_ps(x0 + i), vrho);
    const __m256 term = _mm256_mul_ps(LoadValues<kBf16>(values + i * kBytes), minus_a);
    _mm256_storeu_ps(x + i, _mm256_fmadd_ps(v, vc, term));
  }
  if (i == n) return;
  // Copied, so that nothing beyond the last value is read.
  alignas(64) uint8_t part[kLanes * kBytes] = {};
  std::memcpy(part, values + i * kBytes, (n - i) * kBytes);
  const __m256i mask = TailMask(n - i);
  __m256 v = _mm256_maskload_ps(x + i, mask);
  if constexpr (kRescale) v = Rescale(v, _mm256_maskload_ps(x0 + i, mask), vrho);
  const __m256 term = _mm256_mul_ps(LoadValues<kBf16>(part), minus_a);
  _mm256_maskstore_ps(x + i, mask, _mm256_fmadd_ps(v, vc, term));
}

template <bool kBf16>
void Dense(float* x, size_t n, const uint8_t* v, float a, float c) {
  RunDense<false, kBf16>(x, nullptr, n, v, a, c, 1.0f);
}

template <bool kBf16>
void RescaledDense(float* x, const float* x0, size_t n, const uint8_t* v, float a, float c,
                   float rho) {
  RunDense<true, kBf16>(x, x0, n, v, a, c, rho);
}

}  // namespace

const Table kAvx2 = {Step,         RescaledStep, CountsStep,           RescaledCountsStep,
                     Dense<false>, Dense<true>,  RescaledDense<false>, RescaledDense<true>};

}  // namespace signvote::apply_kernels
