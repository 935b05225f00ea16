// Compiled with AVX2 and FMA flags: reached only where they are there.

#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "common/apply_bits.h"
#include "worker/codec/pack_kernels.h"

namespace signvote::pack_kernels {
namespace {

struct Coefficients {
  Coefficients(float a_in, float c_in)
      : a(_mm256_set1_ps(a_in)),
        c(_mm256_set1_ps(c_in)),
        one_minus_a(_mm256_set1_ps(1.0f - a_in)),
        one_minus_c(_mm256_set1_ps(1.0f - c_in)) {}
  __m256 a, c, one_minus_a, one_minus_c;
};

// Eight fp64 numbers.
struct Doubles {
  __m256d low = _mm256_setzero_pd();
  __m256d high = _mm256_setzero_pd();
};

inline __attribute__((always_inline)) Doubles Widen(__m256 v) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
}

// Eight lanes of a sum.
struct Sum : Doubles {
  inline __attribute__((always_inline)) void Add(const Doubles& terms) {
    low = _mm256_add_pd(low, terms.low);
    high = _mm256_add_pd(high, terms.high);
  }
  // A product of two fp32 numbers is exact in fp64, so fused and separate give the same sum.
  inline __attribute__((always_inline)) void AddSquares(const Doubles& terms) {
    low = _mm256_fmadd_pd(terms.low, terms.low, low);
    high = _mm256_fmadd_pd(terms.high, terms.high, high);
  }
};

struct Sums {
  double g_l1 = 0, g_l2_squared = 0, probe_l1 = 0, prev_inner = 0;
};

// The sums of eight lanes. A block does one half of the lanes after the other: all sixteen of four
// sums at once would not fit the sixteen registers.
struct Half {
  Sum g_l1, g_l2_squared, probe_l1, prev_inner;
};
struct Accumulators {
  Half lower, upper;  // lanes 0 to 7 and 8 to 15
  // Lane l += lane l+8, then +4, +2, +1.
  static inline __attribute__((always_inline)) double AddUp(const Sum& lower, const Sum& upper) {
    const __m256d four =
        _mm256_add_pd(_mm256_add_pd(lower.low, upper.low), _mm256_add_pd(lower.high, upper.high));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  template <bool kProbe, bool kPrevious>
  inline __attribute__((always_inline)) Sums AddUp() const {
    Sums sums;
    sums.g_l1 = AddUp(lower.g_l1, upper.g_l1);
    sums.g_l2_squared = AddUp(lower.g_l2_squared, upper.g_l2_squared);
    if constexpr (kProbe) sums.probe_l1 = AddUp(lower.probe_l1, upper.probe_l1);
    if constexpr (kPrevious) sums.prev_inner = AddUp(lower.prev_inner, upper.prev_inner);
    return sums;
  }
};

struct BlockBits {
  uint64_t ones = 0;       // u > 0
  uint64_t undecided = 0;  // the own coin decides
  uint64_t nonfinite = 0;
};

inline __attribute__((always_inline)) __m256 Abs(__m256 v) {
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
}
// All ones where v is neither NaN nor infinite.
inline __attribute__((always_inline)) __m256 Finite(__m256 v) {
  return _mm256_cmp_ps(Abs(v), _mm256_set1_ps(__builtin_inff()), _CMP_LT_OQ);
}
inline __attribute__((always_inline)) uint64_t Bits(__m256 mask) {
  return static_cast<uint64_t>(static_cast<unsigned>(_mm256_movemask_ps(mask)));
}

template <size_t kFirstLane, bool kState, bool kGiven, bool kProbe, bool kPrevious>
inline __attribute__((always_inline)) void HalfBlock(const Coefficients& k, const float* g_in,
                                                     float* m_in, const float* u_in,
                                                     const float* h_in, uint64_t prev, Half& half,
                                                     BlockBits& bits) {
  const __m256 zeros = _mm256_setzero_ps();
  for (size_t i = kFirstLane; i < 64; i += kSumLanes) {
    __m256 g = _mm256_loadu_ps(g_in + i);
    __m256 h = zeros;
    __m256 good = Finite(g);
    if constexpr (kProbe) {
      h = _mm256_loadu_ps(h_in + i);
    }
    __m256 u = zeros;
    if constexpr (kGiven) {
      u = _mm256_loadu_ps(u_in + i);
      good = _mm256_and_ps(good, Finite(u));
      u = _mm256_and_ps(good, u);  // zero where something is bad: the own coin decides
    }
    g = _mm256_and_ps(good, g);  // a zero adds nothing to any sum
    if constexpr (!kGiven) u = g;
    if constexpr (kState) {
      const __m256 m = _mm256_loadu_ps(m_in + i);
      u = _mm256_fmadd_ps(k.a, m, _mm256_mul_ps(k.one_minus_a, g));
      u = _mm256_and_ps(good, u);  // zero where g is bad, which leaves the bit to the own coin
      const __m256 next = _mm256_fmadd_ps(k.c, m, _mm256_mul_ps(k.one_minus_c, g));
      _mm256_storeu_ps(m_in + i, _mm256_blendv_ps(m, next, good));
    }
    bits.ones |= Bits(_mm256_cmp_ps(u, zeros, _CMP_GT_OQ)) << i;
    bits.undecided |= Bits(_mm256_cmp_ps(u, zeros, _CMP_EQ_UQ)) << i;
    bits.nonfinite |= (Bits(good) ^ 0xFFu) << i;

    const Doubles magnitude = Widen(Abs(g));
    half.g_l1.Add(magnitude);
    half.g_l2_squared.AddSquares(magnitude);
    if constexpr (kProbe) {
      half.probe_l1.Add(Widen(Abs(_mm256_and_ps(good, _mm256_sub_ps(g, h)))));
    }
    if constexpr (kPrevious) {
      const __m256i bit_of_lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
      const __m256i byte = _mm256_set1_epi32(static_cast<int>((prev >> i) & 0xFFu));
      const __m256i plus = _mm256_cmpeq_epi32(_mm256_and_si256(byte, bit_of_lane), bit_of_lane);
      const __m256 flip = _mm256_andnot_ps(_mm256_castsi256_ps(plus), _mm256_set1_ps(-0.0f));
      half.prev_inner.Add(Widen(_mm256_xor_ps(g, flip)));
    }
  }
}

template <bool kState, bool kGiven, bool kProbe, bool kPrevious>
inline __attribute__((always_inline)) BlockBits Block(const Coefficients& k, const float* g,
                                                      float* m, const float* u, const float* h,
                                                      uint64_t prev, Accumulators& acc) {
  BlockBits bits;
  HalfBlock<0, kState, kGiven, kProbe, kPrevious>(k, g, m, u, h, prev, acc.lower, bits);
  HalfBlock<8, kState, kGiven, kProbe, kPrevious>(k, g, m, u, h, prev, acc.upper, bits);
  return bits;
}

// ---- the vector of formed_body.inc --------------------------------------------------------------

using Vec = __m256;
using Mask = __m256;
constexpr size_t kWidth = 8;

inline Vec All(float v) { return _mm256_set1_ps(v); }
inline Vec Load(const float* from) { return _mm256_loadu_ps(from); }
inline void Store(float* to, Vec v) { _mm256_storeu_ps(to, v); }
inline Vec Add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec Div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec Sqrt(Vec v) { return _mm256_sqrt_ps(v); }
inline Vec Larger(Vec p, Vec q) { return _mm256_max_ps(p, q); }
inline Vec Smaller(Vec p, Vec q) { return _mm256_min_ps(p, q); }
inline Mask And(Mask a, Mask b) { return _mm256_and_ps(a, b); }
inline Mask NotZero(Vec v) { return _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ); }
inline Vec Keep(Mask mask, Vec v) { return _mm256_and_ps(mask, v); }
inline Vec Choose(Mask mask, Vec v, Vec otherwise) { return _mm256_blendv_ps(otherwise, v, mask); }
inline __m256i Upper(Vec v, __m256i rounding) {
  const __m256i size = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7FFFFFFF));
  return _mm256_min_epu32(_mm256_srli_epi32(_mm256_add_epi32(size, rounding), 16),
                          _mm256_set1_epi32(0x7F7F));
}
inline void StoreHalves(uint16_t* to, __m256i v) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(v, v), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}
inline __m256i LoadHalves(const uint16_t* from) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Vec LoadBf16(const uint16_t* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(LoadHalves(from), 16));
}
inline void StoreNearest(uint16_t* to, Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i near = Upper(v, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x8000));
  StoreHalves(to, _mm256_or_si256(near, sign));
}
inline void StoreUpwards(uint16_t* to, Vec v) {
  StoreHalves(to, Upper(v, _mm256_set1_epi32(0xFFFF)));
}
inline Vec Noise(const uint16_t* uniforms) {
  const __m256i twice = _mm256_slli_epi32(LoadHalves(uniforms), 1);
  return Mul(_mm256_cvtepi32_ps(_mm256_add_epi32(twice, _mm256_set1_epi32(1 - 65536))),
             All(0x1p-16f));
}

#include "worker/codec/pack_body.inc"

}  // namespace

void PackAvx2(const PackContext& context, const PackSegment& segment, PackScalars* sums) {
  Pack(context, segment, sums);
}

float LargestAvx2(const PackContext& context, const PackSegment& segment) {
  return LargestOf(context, segment);
}

void StepAvx2(const PackContext& context, const PackSegment& segment, float length, float* y) {
  StepOf(context, segment, length, y);
}

}  // namespace signvote::pack_kernels
