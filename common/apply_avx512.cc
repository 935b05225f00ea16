// AVX-512 (F, BW, DQ, VL) kernels of apply. Compiled with ISA flags: include nothing whose inline
// functions others share.
#include <immintrin.h>

#include <cstring>

#include "common/apply_bits.h"
#include "common/apply_kernels.h"

namespace signvote::apply_kernels {
namespace {

constexpr size_t kBlock = 64;  // coordinates per word of bits
constexpr size_t kLanes = 16;

inline __m512 Rescale(__m512 x, __m512 x0, __m512 rho) {
  return _mm512_fmadd_ps(rho, _mm512_sub_ps(x, x0), x0);
}

template <bool kRescale>
inline void Run(float* x, const float* x0, size_t n, const uint8_t* bits, size_t bit_offset,
                float a, float c, float rho) {
  const __m512 zero_term = _mm512_set1_ps(a);  // −a·b for bit 0
  const __m512 one_term = _mm512_set1_ps(-a);  // −a·b for bit 1
  const __m512 vc = _mm512_set1_ps(c);
  const __m512 vrho = _mm512_set1_ps(rho);
  size_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    const uint64_t word = ReadWord(bits, bit_offset + i);
    for (size_t k = 0; k < kBlock; k += kLanes) {
      const __m512 term =
          _mm512_mask_blend_ps(static_cast<__mmask16>(word >> k), zero_term, one_term);
      __m512 v = _mm512_loadu_ps(x + i + k);
      if constexpr (kRescale) v = Rescale(v, _mm512_loadu_ps(x0 + i + k), vrho);
      _mm512_storeu_ps(x + i + k, _mm512_fmadd_ps(v, vc, term));
    }
  }
  if (i == n) return;
  uint64_t word = ReadPartialWord(bits, bit_offset + i, n - i);
  for (; i < n; i += kLanes, word >>= kLanes) {
    const __mmask16 mask = n - i >= kLanes ? static_cast<__mmask16>(0xFFFF)
                                           : static_cast<__mmask16>((1u << (n - i)) - 1u);
    const __m512 term = _mm512_mask_blend_ps(static_cast<__mmask16>(word), zero_term, one_term);
    __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
    if constexpr (kRescale) v = Rescale(v, _mm512_maskz_loadu_ps(mask, x0 + i), vrho);
    _mm512_mask_storeu_ps(x + i, mask, _mm512_fmadd_ps(v, vc, term));
  }
}

void Step(float* x, size_t n, const uint8_t* bits, size_t bit_offset, float a, float c) {
  Run<false>(x, nullptr, n, bits, bit_offset, a, c, 1.0f);
}

void RescaledStep(float* x, const float* x0, size_t n, const uint8_t* bits, size_t bit_offset,
                  float a, float c, float rho) {
  Run<true>(x, x0, n, bits, bit_offset, a, c, rho);
}

// −(a·w) for 16 coordinates, of which bit k of each word is the first.
inline __m512 CountsTerm(const uint64_t* words, uint32_t planes, size_t k, __m512i ballots,
                         __m512 divisor, __m512 minus_a) {
  __m512i twice = _mm512_setzero_si512();  // 2·count
  for (uint32_t p = 0; p < planes; ++p) {
    const __m512i weight = _mm512_set1_epi32(static_cast<int>(2u << p));
    twice = _mm512_mask_add_epi32(twice, static_cast<__mmask16>(words[p] >> k), twice, weight);
  }
  const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(twice, ballots));
  return _mm512_mul_ps(_mm512_div_ps(sum, divisor), minus_a);
}

template <bool kRescale>
inline void RunCounts(float* x, const float* x0, size_t n, const Counts& counts, float a, float c,
                      float rho) {
  const __m512i ballots = _mm512_set1_epi32(static_cast<int>(counts.ballots));
  const __m512 divisor = _mm512_set1_ps(static_cast<float>(counts.ballots));
  const __m512 minus_a = _mm512_set1_ps(-a);
  const __m512 vc = _mm512_set1_ps(c);
  const __m512 vrho = _mm512_set1_ps(rho);
  uint64_t words[kCountPlanesMax];
  size_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    for (uint32_t p = 0; p < counts.planes; ++p) {
      words[p] = ReadWord(counts.bits + p * counts.plane_bytes, counts.bit_offset + i);
    }
    for (size_t k = 0; k < kBlock; k += kLanes) {
      __m512 v = _mm512_loadu_ps(x + i + k);
      if constexpr (kRescale) v = Rescale(v, _mm512_loadu_ps(x0 + i + k), vrho);
      const __m512 term = CountsTerm(words, counts.planes, k, ballots, divisor, minus_a);
      _mm512_storeu_ps(x + i + k, _mm512_fmadd_ps(v, vc, term));
    }
  }
  if (i == n) return;
  for (uint32_t p = 0; p < counts.planes; ++p) {
    words[p] = ReadPartialWord(counts.bits + p * counts.plane_bytes, counts.bit_offset + i, n - i);
  }
  for (size_t k = 0; i + k < n; k += kLanes) {
    const size_t left = n - i - k;
    const __mmask16 mask =
        left >= kLanes ? static_cast<__mmask16>(0xFFFF) : static_cast<__mmask16>((1u << left) - 1u);
    __m512 v = _mm512_maskz_loadu_ps(mask, x + i + k);
    if constexpr (kRescale) v = Rescale(v, _mm512_maskz_loadu_ps(mask, x0 + i + k), vrho);
    const __m512 term = CountsTerm(words, counts.planes, k, ballots, divisor, minus_a);
    _mm512_mask_storeu_ps(x + i + k, mask, _mm512_fmadd_ps(v, vc, term));
  }
}

void CountsStep(float* x, size_t n, const Counts& counts, float a, float c) {
  RunCounts<false>(x, nullptr, n, counts, a, c, 1.0f);
}

void RescaledCountsStep(float* x, const float* x0, size_t n, const Counts& counts, float a, float c,
                        float rho) {
  RunCounts<true>(x, x0, n, counts, a, c, rho);
}

// 16 values, widened.
template <bool kBf16>
inline __m512 LoadValues(const uint8_t* v) {
  if constexpr (kBf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(
            _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(v)))),
        16));
  } else {
    return _mm512_loadu_ps(v);
  }
}

template <bool kRescale, bool kBf16>
inline void RunDense(float* x, const float* x0, size_t n, const uint8_t* values, float a, float c,
                     float rho) {
  constexpr size_t kBytes = kBf16 ? 2 : 4;
  const __m512 minus_a = _mm512_set1_ps(-a);
  const __m512 vc = _mm512_set1_ps(c);
  const __m512 vrho = _mm512_set1_ps(rho);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    __m512 v = _mm512_loadu_ps(x + i);
    if constexpr (kRescale) v = Rescale(v, _mm512_loadu_ps(x0 + i), vrho);
    const __m512 term = _mm512_mul_ps(LoadValues<kBf16>(values + i * kBytes), minus_a);
    _mm512_storeu_ps(x + i, _mm512_fmadd_ps(v, vc, term));
  }
  if (i == n) return;
  // Copied, so that nothing beyond the last value is read.
  alignas(64) uint8_t part[kLanes * kBytes] = {};
  std::memcpy(part, values + i * kBytes, (n - i) * kBytes);
  const __mmask16 mask = static_cast<__mmask16>((1u << (n - i)) - 1u);
  __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
  if constexpr (kRescale) v = Rescale(v, _mm512_maskz_loadu_ps(mask, x0 + i), vrho);
  const __m512 term = _mm512_mul_ps(LoadValues<kBf16>(part), minus_a);
  _mm512_mask_storeu_ps(x + i, mask, _mm512_fmadd_ps(v, vc, term));
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

const Table kAvx512 = {Step,         RescaledStep, CountsStep,           RescaledCountsStep,
                       Dense<false>, Dense<true>,  RescaledDense<false>, RescaledDense<true>};

}  // namespace signvote::apply_kernels
