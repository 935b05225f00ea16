#include "common/coin.h"

#include <immintrin.h>

#include "common/cpu.h"

namespace signvote {
namespace {

// mix(seed, round, word) = fin(prefix ^ word): only the last link of the chain depends on the word.
constexpr uint64_t Prefix(uint64_t seed, uint64_t round) { return Fin(Fin(seed) ^ round); }

void FillScalar(uint64_t prefix, uint64_t first_word, std::span<uint64_t> out) {
  for (size_t k = 0; k < out.size(); ++k) out[k] = Fin(prefix ^ (first_word + k));
}

[[gnu::target("avx512f,avx512dq")]] inline __m512i Fin8(__m512i z) {
  z = _mm512_add_epi64(z, _mm512_set1_epi64(static_cast<int64_t>(0x9E3779B97F4A7C15ull)));
  z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 30)),
                         _mm512_set1_epi64(static_cast<int64_t>(0xBF58476D1CE4E5B9ull)));
  z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 27)),
                         _mm512_set1_epi64(static_cast<int64_t>(0x94D049BB133111EBull)));
  return _mm512_xor_si512(z, _mm512_srli_epi64(z, 31));
}

[[gnu::target("avx512f,avx512dq")]] void FillAvx512(uint64_t prefix, uint64_t first_word,
                                                    std::span<uint64_t> out) {
  uint64_t* const to = out.data();
  const size_t n = out.size();
  const __m512i vprefix = _mm512_set1_epi64(static_cast<int64_t>(prefix));
  const __m512i eight = _mm512_set1_epi64(8);
  __m512i word = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(first_word)),
                                  _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
  size_t k = 0;
  // Two independent chains hide the multiplier's latency.
  for (; k + 16 <= n; k += 16) {
    const __m512i next = _mm512_add_epi64(word, eight);
    _mm512_storeu_si512(to + k, Fin8(_mm512_xor_si512(vprefix, word)));
    _mm512_storeu_si512(to + k + 8, Fin8(_mm512_xor_si512(vprefix, next)));
    word = _mm512_add_epi64(next, eight);
  }
  for (; k < n; k += 8) {
    const __mmask8 mask =
        n - k >= 8 ? static_cast<__mmask8>(0xFF) : static_cast<__mmask8>((1u << (n - k)) - 1u);
    _mm512_mask_storeu_epi64(to + k, mask, Fin8(_mm512_xor_si512(vprefix, word)));
    word = _mm512_add_epi64(word, eight);
  }
}

// As FillAvx512, with one more link: the share.
[[gnu::target("avx512f,avx512dq")]] void FillSharedAvx512(uint64_t prefix, uint64_t link,
                                                          uint64_t first_word,
                                                          std::span<uint64_t> out) {
  const size_t n = out.size();
  const __m512i vprefix = _mm512_set1_epi64(static_cast<int64_t>(prefix));
  const __m512i vlink = _mm512_set1_epi64(static_cast<int64_t>(link));
  __m512i word = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(first_word)),
                                  _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
  for (size_t k = 0; k < n; k += 8) {
    const __mmask8 mask =
        n - k >= 8 ? static_cast<__mmask8>(0xFF) : static_cast<__mmask8>((1u << (n - k)) - 1u);
    const __m512i mixed = Fin8(_mm512_xor_si512(vprefix, word));
    _mm512_mask_storeu_epi64(out.data() + k, mask, Fin8(_mm512_xor_si512(mixed, vlink)));
    word = _mm512_add_epi64(word, _mm512_set1_epi64(8));
  }
}

}  // namespace

void FillUniforms(uint64_t seed, Round round, Share share, uint64_t first_word,
                  std::span<uint64_t> out) {
  const uint64_t prefix = Prefix(DomainSeed(kUniformDomain, seed), round.value());
  const uint64_t link = uint64_t{share.value()} + 1;
  if (ActiveIsa() == Isa::kAvx512) {
    FillSharedAvx512(prefix, link, first_word, out);
    return;
  }
  for (size_t k = 0; k < out.size(); ++k) out[k] = Fin(Fin(prefix ^ (first_word + k)) ^ link);
}

void FillTieCoins(uint64_t seed, Round round, uint64_t first_word, std::span<uint64_t> out) {
  const uint64_t prefix = Prefix(seed, round.value());
  if (ActiveIsa() == Isa::kAvx512) {
    FillAvx512(prefix, first_word, out);
  } else {
    FillScalar(prefix, first_word, out);
  }
}

}  // namespace signvote
