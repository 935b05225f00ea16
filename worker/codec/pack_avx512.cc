// Compiled with AVX-512 flags: reached only where F, BW, DQ and VL are there.

#include <immintrin.h>

#include <cstring>

#include "common/apply_bits.h"
#include "worker/codec/pack_kernels.h"

namespace signvote::pack_kernels {
namespace {

struct Coefficients {
  Coefficients(float a_in, float c_in)
      : a(_mm512_set1_ps(a_in)), c(_mm512_set1_ps(c_in)), one_minus_a(_mm512_set1_ps(1.0f - a_in)),
        one_minus_c(_mm512_set1_ps(1.0f - c_in)) {}
  __m512 a, c, one_minus_a, one_minus_c;
};

// Lanes 0 to 7 of a sum in `low`, 8 to 15 in `high`.
struct Sum {
  __m512d low = _mm512_setzero_pd();
  __m512d high = _mm512_setzero_pd();
  inline __attribute__((always_inline)) void Add(__m512 terms) {
    low = _mm512_add_pd(low, Low(terms));
    high = _mm512_add_pd(high, High(terms));
  }
  // A product of two fp32 numbers is exact in fp64, so fused and separate give the same sum.
  inline __attribute__((always_inline)) void AddSquares(__m512 terms) {
    const __m512d l = Low(terms), h = High(terms);
    low = _mm512_fmadd_pd(l, l, low);
    high = _mm512_fmadd_pd(h, h, high);
  }
  void StoreTo(double* lanes) const {
    _mm512_storeu_pd(lanes, low);
    _mm512_storeu_pd(lanes + 8, high);
  }
  static inline __attribute__((always_inline)) __m512d Low(__m512 v) {
    return _mm512_cvtps_pd(_mm512_castps512_ps256(v));
  }
  static inline __attribute__((always_inline)) __m512d High(__m512 v) {
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
  }
};

struct Accumulators {
  Sum g_l1, g_l2_squared, probe_l1, prev_inner;
  void StoreTo(LaneSums* sums) const {
    g_l1.StoreTo(sums->g_l1);
    g_l2_squared.StoreTo(sums->g_l2_squared);
    probe_l1.StoreTo(sums->probe_l1);
    prev_inner.StoreTo(sums->prev_inner);
  }
};

struct BlockBits {
  uint64_t ones = 0;       // u > 0
  uint64_t undecided = 0;  // the own coin decides
  uint64_t nonfinite = 0;
};

// NaN of both kinds and both infinities, as VFPCLASS numbers them.
constexpr int kNonfiniteClasses = 0x01 | 0x08 | 0x10 | 0x80;

template <bool kState, bool kProbe, bool kPrevious>
inline __attribute__((always_inline)) BlockBits Block(const Coefficients& k, const float* g_in, float* m_in,
                                                      const float* h_in, uint64_t prev, Accumulators& acc) {
  BlockBits bits;
  for (size_t i = 0; i < 64; i += kLanes) {
    __m512 g = _mm512_loadu_ps(g_in + i);
    __m512 h = _mm512_setzero_ps();
    __mmask16 bad = _mm512_fpclass_ps_mask(g, kNonfiniteClasses);
    if constexpr (kProbe) {
      h = _mm512_loadu_ps(h_in + i);
      bad = static_cast<__mmask16>(bad | _mm512_fpclass_ps_mask(h, kNonfiniteClasses));
    }
    const __mmask16 good = static_cast<__mmask16>(~bad);
    g = _mm512_maskz_mov_ps(good, g);  // a zero adds nothing to any sum
    __m512 u = g;
    if constexpr (kState) {
      const __m512 m = _mm512_loadu_ps(m_in + i);
      u = _mm512_fmadd_ps(k.a, m, _mm512_mul_ps(k.one_minus_a, g));
      const __m512 next = _mm512_fmadd_ps(k.c, m, _mm512_mul_ps(k.one_minus_c, g));
      _mm512_storeu_ps(m_in + i, _mm512_mask_mov_ps(m, good, next));
    }
    const __mmask16 ones = _mm512_mask_cmp_ps_mask(good, u, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __mmask16 zero = _mm512_cmp_ps_mask(u, _mm512_setzero_ps(), _CMP_EQ_UQ);
    bits.ones |= static_cast<uint64_t>(ones) << i;
    bits.undecided |= static_cast<uint64_t>(static_cast<__mmask16>(zero | bad)) << i;
    bits.nonfinite |= static_cast<uint64_t>(bad) << i;

    acc.g_l1.Add(_mm512_abs_ps(g));
    acc.g_l2_squared.AddSquares(g);
    if constexpr (kProbe) acc.probe_l1.Add(_mm512_abs_ps(_mm512_maskz_sub_ps(good, g, h)));
    if constexpr (kPrevious) {
      const __mmask16 minus = static_cast<__mmask16>(~(prev >> i));
      acc.prev_inner.Add(_mm512_mask_xor_ps(g, minus, g, _mm512_set1_ps(-0.0f)));
    }
  }
  return bits;
}

#include "worker/codec/pack_body.inc"

}  // namespace

void PackAvx512(const PackContext& context, const PackSegment& segment, LaneSums* sums) {
  Pack(context, segment, sums);
}

}  // namespace signvote::pack_kernels
