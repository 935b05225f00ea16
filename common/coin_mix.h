#pragma once
// The arithmetic of the coins (common/coin.h has the definition and what they are for), over plain
// integers and without any include, so that device code uses this very text.

#include <cstdint>

namespace signvote {

constexpr uint64_t Fin(uint64_t z) {
  z += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}
constexpr uint64_t Mix(uint64_t a, uint64_t b, uint64_t c) { return Fin(Fin(Fin(a) ^ b) ^ c); }

// Numbers for different purposes come from different domains, so that equal seeds give no equal
// streams. The coins' domain is the seed itself; every other one is fin(seed ^ its name), the name
// being eight ASCII bytes read as a little-endian number.
constexpr uint64_t DomainSeed(uint64_t domain, uint64_t seed) { return Fin(seed ^ domain); }
inline constexpr uint64_t kUniformDomain = 0x316d726f66696e75ull;  // "uniform1"
inline constexpr uint64_t kInitDomain = 0x31736d6172617078ull;     // "xparams1": initial parameters
inline constexpr uint64_t kDataDomain = 0x3168637461626e69ull;     // "inbatch1": minibatches

constexpr uint64_t TieCoinBits(uint64_t seed, uint64_t round, uint64_t word) {
  return Mix(seed, round, word);
}
constexpr uint64_t OwnCoinBits(uint64_t seed, uint64_t round, uint32_t share, uint64_t word) {
  return Fin(Mix(seed, round, word) ^ (uint64_t{share} + 1));
}
constexpr uint64_t UniformBits(uint64_t seed, uint64_t round, uint32_t share, uint64_t word) {
  return OwnCoinBits(DomainSeed(kUniformDomain, seed), round, share, word);
}

}  // namespace signvote
