#include "worker/data/window_order.h"

#include <algorithm>
#include <bit>

#include "common/check.h"
#include "common/coin_mix.h"
#include "common/rng.h"

namespace signvote {
namespace {

// Four rounds of a random function are indistinguishable from a random permutation (Luby, Rackoff
// 1988); small halves want some more.
constexpr uint64_t kFeistelRounds = 6;
// The stream behind the last round's.
constexpr uint64_t kOffsetStream = kFeistelRounds;

// The share's place in [0, 1) as a fraction of 2^32: its bits in reverse.
uint64_t VanDerCorput(uint32_t share) {
  uint32_t reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= ((share >> bit) & 1u) << (31 - bit);
  return reversed;
}

}  // namespace

WindowOrder::WindowOrder(uint64_t tokens, uint64_t length) : length_(length) {
  SIGNVOTE_CHECK(length > 0 && tokens > length);
  // One window's length is left over, so that the cut can begin anywhere within it.
  windows_ = std::max<uint64_t>(1, tokens / length - 1);
  offsets_ = std::min(length, tokens - windows_ * length);
  half_bits_ = std::max(1u, static_cast<uint32_t>(std::bit_width(windows_ - 1) + 1) / 2);
}

uint64_t WindowOrder::Permuted(uint64_t key, uint64_t index) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  do {
    uint64_t left = index >> half_bits_;
    uint64_t right = index & mask;
    for (uint64_t round = 0; round < kFeistelRounds; ++round) {
      const uint64_t next = left ^ (Mix(key, round, right) & mask);
      left = right;
      right = next;
    }
    index = left << half_bits_ | right;
  } while (index >= windows_);
  return index;
}

uint64_t WindowOrder::First(uint64_t seed, Share share, uint64_t k) const {
  __extension__ using Wide = unsigned __int128;
  const auto start =
      static_cast<uint64_t>((static_cast<Wide>(VanDerCorput(share.value())) * windows_) >> 32);
  const uint64_t epoch = k / windows_;
  // Below 2^63 each: no sum of the two runs over.
  const uint64_t place = (start + k % windows_) % windows_;
  const uint64_t key = Mix(DomainSeed(kDataDomain, seed), epoch, windows_);
  return Rng(key, kOffsetStream).Below(offsets_) + Permuted(key, place) * length_;
}

}  // namespace signvote
