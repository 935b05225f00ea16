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

uint64_t WindowOrder::Turns(uint64_t shares, uint64_t share) const {
  return windows_ / shares + (share < windows_ % shares ? 1 : 0);
}

WindowOrder::Rows WindowOrder::LeftTo(uint64_t share) const {
  // Earlier share i leaves Turns(share, i) - Turns(share + 1, i) places: as many as any other, but
  // one more where only the first remainder counts it, and one less where only the second does.
  const uint64_t each = windows_ / share - windows_ / (share + 1);
  const uint64_t before = windows_ % share;
  const uint64_t after = windows_ % (share + 1);
  if (before >= after) return {.whole = each, .skip_from = 0, .skip_to = after};
  return {.whole = each - 1, .skip_from = before, .skip_to = after};
}

WindowOrder::Own WindowOrder::Giver(uint64_t share, uint64_t k) const {
  const Rows left = LeftTo(share);
  uint64_t row = k / share;
  uint64_t from = k % share;
  if (row >= left.whole) {
    row = left.whole;
    from = k - left.whole * share;
    if (from >= left.skip_from) from += left.skip_to - left.skip_from;
  }
  return {.share = from, .k = Turns(share + 1, from) + row};
}

uint64_t WindowOrder::IndexOf(uint64_t share, const Own& given) const {
  const Rows left = LeftTo(share);
  const uint64_t row = given.k - Turns(share + 1, given.share);
  const uint64_t skipped =
      row == left.whole && given.share >= left.skip_to ? left.skip_to - left.skip_from : 0;
  return row * share + given.share - skipped;
}

uint64_t WindowOrder::OwnPlace(Own own) const {
  while (own.share > 0) own = Giver(own.share, own.k);
  return own.k;
}

std::optional<uint64_t> WindowOrder::FindOwn(uint64_t share, uint64_t place) const {
  Own own{.share = 0, .k = place};
  while (own.share < share) {
    if (own.k == 0) return std::nullopt;  // a first place is left to nobody
    // With more shares than this one it has fewer turns than it needs.
    const uint64_t taker = (windows_ - own.share - 1) / own.k;
    if (taker > share) return std::nullopt;
    own = {.share = taker, .k = IndexOf(taker, own)};
  }
  return own.k;
}

uint64_t WindowOrder::Place(Share share, uint64_t k) const {
  __extension__ using Wide = unsigned __int128;
  const uint64_t number = share.value();
  if (k < Turns(number + 1, number)) return OwnPlace({.share = number, .k = k});
  const auto start =
      static_cast<uint64_t>((static_cast<Wide>(VanDerCorput(share.value())) * windows_) >> 32);
  // Below 2^63 each: no sum of the two runs over.
  uint64_t place = (start + k) % windows_;
  while (const std::optional<uint64_t> swapped = FindOwn(number, place))
    place = (start + *swapped) % windows_;
  return place;
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
  const uint64_t epoch = k / windows_;
  const uint64_t key = Mix(DomainSeed(kDataDomain, seed), epoch, windows_);
  return Rng(key, kOffsetStream).Below(offsets_) +
         Permuted(key, Place(share, k % windows_)) * length_;
}

}  // namespace signvote
