// AVX-512 (F, BW, DQ, VL) kernels of apply. Compiled with ISA flags: include nothing whose inline
// functions others share.
#include <immintrin.h>

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

}  // namespace

const Table kAvx512 = {Step, RescaledStep};

}  // namespace signvote::apply_kernels
