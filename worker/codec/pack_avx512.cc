// Compiled with AVX-512 flags: reached only where F, BW, DQ and VL are there.

#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "common/apply_bits.h"
#include "worker/codec/pack_kernels.h"

namespace signvote::pack_kernels {
namespace {

struct Coefficients {
  Coefficients(float a_in, float c_in)
      : a(_mm512_set1_ps(a_in)),
        c(_mm512_set1_ps(c_in)),
        one_minus_a(_mm512_set1_ps(1.0f - a_in)),
        one_minus_c(_mm512_set1_ps(1.0f - c_in)) {}
  __m512 a, c, one_minus_a, one_minus_c;
};

// Sixteen fp64 numbers: lanes 0 to 7 in `low`, 8 to 15 in `high`.
struct Doubles {
  __m512d low = _mm512_setzero_pd();
  __m512d high = _mm512_setzero_pd();
};

inline __attribute__((always_inline)) Doubles Widen(__m512 v) {
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(v)),
          _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
}

struct Sum : Doubles {
  inline __attribute__((always_inline)) void Add(const Doubles& terms) {
    low = _mm512_add_pd(low, terms.low);
    high = _mm512_add_pd(high, terms.high);
  }
  // A product of two fp32 numbers is exact in fp64, so fused and separate give the same sum.
  inline __attribute__((always_inline)) void AddSquares(const Doubles& terms) {
    low = _mm512_fmadd_pd(terms.low, terms.low, low);
    high = _mm512_fmadd_pd(terms.high, terms.high, high);
  }
  // Lane l += lane l+8, then +4, +2, +1.
  inline __attribute__((always_inline)) double AddUp() const {
    const __m512d eight = _mm512_add_pd(low, high);
    const __m256d four =
        _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
};

struct Sums {
  double g_l1 = 0, g_l2_squared = 0, probe_l1 = 0, prev_inner = 0;
};

struct Accumulators {
  Sum g_l1, g_l2_squared, probe_l1, prev_inner;
  template <bool kProbe, bool kPrevious>
  inline __attribute__((always_inline)) Sums AddUp() const {
    Sums sums;
    sums.g_l1 = g_l1.AddUp();
    sums.g_l2_squared = g_l2_squared.AddUp();
    if constexpr (kProbe) sums.probe_l1 = probe_l1.AddUp();
    if constexpr (kPrevious) sums.prev_inner = prev_inner.AddUp();
    return sums;
  }
};

struct BlockBits {
  uint64_t ones = 0;       // u > 0
  uint64_t undecided = 0;  // the own coin decides
  uint64_t nonfinite = 0;
};

// NaN of both kinds and both infinities, as VFPCLASS numbers them.
constexpr int kNonfiniteClasses = 0x01 | 0x08 | 0x10 | 0x80;

struct QuarterBits {
  __mmask16 ones, undecided, nonfinite;
};

inline __attribute__((always_inline)) uint64_t Join(__mmask16 b0, __mmask16 b1, __mmask16 b2,
                                                    __mmask16 b3) {
  return _mm512_kunpackd(_mm512_kunpackw(b3, b2), _mm512_kunpackw(b1, b0));
}

// Sixteen coordinates; bit 0 of `prev` is the first one's.
template <bool kState, bool kGiven, bool kProbe, bool kPrevious>
inline __attribute__((always_inline)) QuarterBits Quarter(const Coefficients& k, const float* g_in,
                                                          float* m_in, const float* u_in,
                                                          const float* h_in, uint64_t prev,
                                                          Accumulators& acc) {
  __m512 g = _mm512_loadu_ps(g_in);
  __m512 h = _mm512_setzero_ps();
  __mmask16 bad = _mm512_fpclass_ps_mask(g, kNonfiniteClasses);
  if constexpr (kProbe) {
    h = _mm512_loadu_ps(h_in);
  }
  __m512 u = _mm512_setzero_ps();
  if constexpr (kGiven) {
    u = _mm512_loadu_ps(u_in);
    bad = _kor_mask16(bad, _mm512_fpclass_ps_mask(u, kNonfiniteClasses));
  }
  const __mmask16 good = _knot_mask16(bad);
  g = _mm512_maskz_mov_ps(good, g);  // a zero adds nothing to any sum
  if constexpr (kGiven) {
    u = _mm512_maskz_mov_ps(good, u);  // zero where something is bad: the own coin decides
  } else {
    u = g;
  }
  if constexpr (kState) {
    const __m512 m = _mm512_loadu_ps(m_in);
    // Zero where g is bad, which leaves the bit to the own coin.
    u = _mm512_maskz_fmadd_ps(good, k.a, m, _mm512_mul_ps(k.one_minus_a, g));
    const __m512 next = _mm512_fmadd_ps(k.c, m, _mm512_mul_ps(k.one_minus_c, g));
    _mm512_storeu_ps(m_in, _mm512_mask_mov_ps(m, good, next));
  }

  const Doubles magnitude = Widen(_mm512_abs_ps(g));
  acc.g_l1.Add(magnitude);
  acc.g_l2_squared.AddSquares(magnitude);
  if constexpr (kProbe) {
    acc.probe_l1.Add(Widen(_mm512_abs_ps(_mm512_maskz_sub_ps(good, g, h))));
  }
  if constexpr (kPrevious) {
    // A term is negative where the signs of g and the verdict differ.
    const __mmask16 minus =
        _kxnor_mask16(_mm512_movepi32_mask(_mm512_castps_si512(g)), static_cast<__mmask16>(prev));
    const __m512d sign = _mm512_set1_pd(-0.0);
    acc.prev_inner.Add(
        {_mm512_mask_xor_pd(magnitude.low, static_cast<__mmask8>(minus), magnitude.low, sign),
         _mm512_mask_xor_pd(magnitude.high, static_cast<__mmask8>(minus >> 8), magnitude.high,
                            sign)});
  }
  return {.ones = _mm512_cmp_ps_mask(u, _mm512_setzero_ps(), _CMP_GT_OQ),
          .undecided = _mm512_cmp_ps_mask(u, _mm512_setzero_ps(), _CMP_EQ_UQ),
          .nonfinite = bad};
}

// Four quarters written out: in a loop that is not unrolled the masks would go through memory.
template <bool kState, bool kGiven, bool kProbe, bool kPrevious>
inline __attribute__((always_inline)) BlockBits Block(const Coefficients& k, const float* g,
                                                      float* m, const float* u, const float* h,
                                                      uint64_t prev, Accumulators& acc) {
  const auto quarter = [&](size_t i) __attribute__((always_inline)) {
    return Quarter<kState, kGiven, kProbe, kPrevious>(k, g + i, kState ? m + i : nullptr,
                                                      kGiven ? u + i : nullptr,
                                                      kProbe ? h + i : nullptr, prev >> i, acc);
  };
  const QuarterBits q0 = quarter(0), q1 = quarter(16), q2 = quarter(32), q3 = quarter(48);
  return {.ones = Join(q0.ones, q1.ones, q2.ones, q3.ones),
          .undecided = Join(q0.undecided, q1.undecided, q2.undecided, q3.undecided),
          .nonfinite = Join(q0.nonfinite, q1.nonfinite, q2.nonfinite, q3.nonfinite)};
}

// ---- the vector of formed_body.inc --------------------------------------------------------------

using Vec = __m512;
using Mask = __mmask16;
constexpr size_t kWidth = 16;

inline Vec All(float v) { return _mm512_set1_ps(v); }
inline Vec Load(const float* from) { return _mm512_loadu_ps(from); }
inline void Store(float* to, Vec v) { _mm512_storeu_ps(to, v); }
inline Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec Div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec Sqrt(Vec v) { return _mm512_sqrt_ps(v); }
inline Vec Abs(Vec v) { return _mm512_abs_ps(v); }
inline Vec Larger(Vec p, Vec q) { return _mm512_max_ps(p, q); }
inline Vec Smaller(Vec p, Vec q) { return _mm512_min_ps(p, q); }
inline Mask And(Mask a, Mask b) { return _kand_mask16(a, b); }
inline Mask Finite(Vec v) { return _knot_mask16(_mm512_fpclass_ps_mask(v, kNonfiniteClasses)); }
inline Mask NotZero(Vec v) { return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
inline Vec Keep(Mask mask, Vec v) { return _mm512_maskz_mov_ps(mask, v); }
inline Vec Choose(Mask mask, Vec v, Vec otherwise) {
  return _mm512_mask_mov_ps(otherwise, mask, v);
}
inline __m512i Upper(Vec v, __m512i rounding) {
  const __m512i size = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7FFFFFFF));
  return _mm512_min_epu32(_mm512_srli_epi32(_mm512_add_epi32(size, rounding), 16),
                          _mm512_set1_epi32(0x7F7F));
}
inline void StoreHalves(uint16_t* to, __m512i v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(v));
}
inline __m512i LoadHalves(const uint16_t* from) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Vec LoadBf16(const uint16_t* from) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(LoadHalves(from), 16));
}
inline void StoreNearest(uint16_t* to, Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i near = Upper(v, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x8000));
  StoreHalves(to, _mm512_or_si512(near, sign));
}
inline void StoreUpwards(uint16_t* to, Vec v) {
  StoreHalves(to, Upper(v, _mm512_set1_epi32(0xFFFF)));
}
inline Vec Noise(const uint16_t* uniforms) {
  const __m512i twice = _mm512_slli_epi32(LoadHalves(uniforms), 1);
  return Mul(_mm512_cvtepi32_ps(_mm512_add_epi32(twice, _mm512_set1_epi32(1 - 65536))),
             All(0x1p-16f));
}

#include "worker/codec/pack_body.inc"

}  // namespace

void PackAvx512(const PackContext& context, const PackSegment& segment, PackScalars* sums) {
  Pack(context, segment, sums);
}

float LargestAvx512(const PackContext& context, const PackSegment& segment) {
  return LargestOf(context, segment);
}

void StepAvx512(const PackContext& context, const PackSegment& segment, float length, float* y) {
  StepOf(context, segment, length, y);
}

}  // namespace signvote::pack_kernels
