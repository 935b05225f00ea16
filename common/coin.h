#pragma once
// The seeded coins, and with them the one definition of what a zero and a tie mean. Everybody can
// recompute them: docs/wire_format.md, "Coins", has test vectors.
//
//   fin(z)              SplitMix64's finaliser with its increment (Steele, Lea, Flood 2014)
//   mix(a, b, c)        fin(fin(fin(a) ^ b) ^ c)
//   coin(round, i)      bit i mod 64 of mix(seed, round, ⌊i/64⌋)
//                       decides coordinate i on a tie
//   own_coin(s,round,i) bit i mod 64 of fin(mix(seed, round, ⌊i/64⌋) ^ (s + 1))
//                       decides a ballot bit where u_i = 0
//
//   uniform(s,round,i)  bits [16·(i mod 4), 16·(i mod 4) + 16) of
//                       fin(mix(fin(seed ^ D), round, ⌊i/4⌋) ^ (s + 1)), an integer in [0, 65536);
//                       D = 0x316d726f66696e75, the ASCII bytes "uniform1" read as a little-endian
//                       number
//                       what a direction that signs a noisy value compares with, independent of
//                       every coin
//
// An own coin per worker keeps coordinates whose gradient is exactly zero (unused embedding rows,
// dead units) from drifting by γ each round: their votes are fair and independent. s is the
// worker's share.

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/coin_mix.h"
#include "common/ids.h"

namespace signvote {

// 64 tie coins: bit k decides coordinate 64·word + k.
constexpr uint64_t TieCoinWord(uint64_t seed, Round round, uint64_t word) {
  return TieCoinBits(seed, round.value(), word);
}
// 64 own coins of the worker that holds `share`: bit k decides coordinate 64·word + k.
constexpr uint64_t OwnCoinWord(uint64_t seed, Round round, Share share, uint64_t word) {
  return OwnCoinBits(seed, round.value(), share.value(), word);
}

// The uniforms of four neighbouring coordinates: bits [16·k, 16·k + 16) are that of 4·word + k.
constexpr uint64_t UniformWord(uint64_t seed, Round round, Share share, uint64_t word) {
  return UniformBits(seed, round.value(), share.value(), word);
}
constexpr uint16_t Uniform16(uint64_t seed, Round round, Share share, uint64_t coordinate) {
  return static_cast<uint16_t>(UniformWord(seed, round, share, coordinate / 4) >>
                               (16 * (coordinate % 4)));
}

// Fills out[k] = TieCoinWord(seed, round, first_word + k); the fast implementation that the tally
// uses.
void FillTieCoins(uint64_t seed, Round round, uint64_t first_word, std::span<uint64_t> out);

// Fills out[k] = UniformWord(seed, round, share, first_word + k); the fast implementation.
void FillUniforms(uint64_t seed, Round round, Share share, uint64_t first_word,
                  std::span<uint64_t> out);

// The zero rule. A ballot bit is 1 where u > 0, 0 where u < 0, the own coin where u = ±0.
// A NaN is not a direction: callers handle it before they ask (it casts the own coin, and is
// counted).
constexpr bool BallotBit(float u, bool own_coin) { return u > 0.0f || (u == 0.0f && own_coin); }

// The tie rule. `ones` of `counted` ballots have bit 1.
constexpr bool VerdictBit(uint32_t ones, uint32_t counted, bool coin) {
  return 2 * ones > counted || (2 * ones == counted && coin);
}

}  // namespace signvote
