#include "server/tally/tally.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "common/bits.h"
#include "common/check.h"
#include "common/coin.h"
#include "common/cpu.h"
#include "server/tally/tally_kernels.h"

namespace signvote {
namespace tally_kernels {
namespace {

using Vec = uint64_t;
constexpr size_t kVecBytes = 8;

inline Vec Load(const uint8_t* p) { return LoadWord(p); }
inline void Store(uint8_t* p, Vec v) { StoreWord(p, v); }
inline Vec Fill(bool ones) { return ones ? ~uint64_t{0} : 0; }
inline Vec Xor(Vec a, Vec b) { return a ^ b; }
inline Vec And(Vec a, Vec b) { return a & b; }
inline Vec AndNot(Vec not_a, Vec b) { return ~not_a & b; }
// sum ← sum ⊕ a ⊕ b; returns the carries.
inline Vec CarrySaveAdd(Vec& sum, Vec a, Vec b) {
  const Vec half = a ^ b;
  const Vec carry = (a & b) | (half & sum);
  sum ^= half;
  return carry;
}

class OnesCounter {
 public:
  void Add(Vec v) { total_ += static_cast<uint64_t>(std::popcount(v)); }
  uint64_t Total() const { return total_; }

 private:
  uint64_t total_ = 0;
};

#include "server/tally/tally_body.inc"

}  // namespace

constinit const Table kScalar = MakeTable();

}  // namespace tally_kernels

namespace {

using tally_kernels::Table;

constexpr TablesByIsa<Table> kTables{tally_kernels::kScalar, tally_kernels::kAvx2,
                                     tally_kernels::kAvx512};

// Coins are drawn in blocks, so that they are still in the first-level cache when they vote. Few
// ballots: small blocks, so that the ballots' prefetches span the drawing. Many: whole blocks of
// the kernel, which starts anew with each call.
constexpr size_t kFewBallots = 16;
constexpr size_t kSmallCoinBytes = 1024;
constexpr size_t kCoinBytes = 8192;

// A counter that starts at 2^planes − threshold reaches plane `planes` exactly when `threshold`
// votes were added.
struct Threshold {
  explicit Threshold(size_t threshold)
      : planes(std::countr_zero(std::bit_ceil(threshold))),
        start(static_cast<uint32_t>((size_t{1} << planes) - threshold)) {}
  int planes;
  uint32_t start;
};
static_assert(size_t{1} << tally_kernels::kPlanesMax >= kTallyBallotsMax / 2 + 1);

void ClearPadding(uint8_t* bits, uint64_t coordinates) {
  if (coordinates % 8 != 0) {
    bits[coordinates / 8] &= static_cast<uint8_t>((1u << (coordinates % 8)) - 1);
  }
}

void CheckInput(const TallyInput& input) {
  SIGNVOTE_CHECK(input.ballots.size() <= kTallyBallotsMax);
  SIGNVOTE_CHECK(input.first_coordinate % kBitsPerWord == 0);
}

}  // namespace

void Tally(const TallyInput& input, uint8_t* verdict, Isa isa) {
  CheckInput(input);
  const size_t n = input.ballots.size();
  const size_t bytes = BytesForBits(input.coordinates);
  const size_t voters = n | 1;  // with the coin when n is even
  const Threshold majority((voters + 1) / 2);
  const auto count = kTables.For(isa).majority[majority.planes];
  if (voters == n) {
    count(input.ballots.data(), n, bytes, majority.start, verdict);
  } else {
    std::array<const uint8_t*, kTallyBallotsMax + 1> rows;
    alignas(64) std::array<uint64_t, kCoinBytes / sizeof(uint64_t)> coins;
    rows[n] = reinterpret_cast<const uint8_t*>(coins.data());
    const size_t block = n <= kFewBallots ? kSmallCoinBytes : kCoinBytes;
    for (size_t from = 0; from < bytes; from += block) {
      const size_t length = std::min(block, bytes - from);
      FillTieCoins(input.seed, input.round,
                   (input.first_coordinate + from * kBitsPerByte) / kBitsPerWord,
                   std::span(coins).first(WordsForBits(length * kBitsPerByte)));
      for (size_t j = 0; j < n; ++j) rows[j] = input.ballots[j] + from;
      count(rows.data(), voters, length, majority.start, verdict + from);
    }
  }
  ClearPadding(verdict, input.coordinates);
}

void TallyReference(const TallyInput& input, uint8_t* verdict) {
  CheckInput(input);
  std::fill_n(verdict, BytesForBits(input.coordinates), uint8_t{0});
  const uint32_t counted = static_cast<uint32_t>(input.ballots.size());
  for (uint64_t i = 0; i < input.coordinates; ++i) {
    uint32_t ones = 0;
    for (const uint8_t* ballot : input.ballots) ones += GetBit(ballot, i) ? 1u : 0u;
    const uint64_t at = input.first_coordinate + i;
    const bool coin =
        (TieCoinWord(input.seed, input.round, at / kBitsPerWord) >> (at % kBitsPerWord)) & 1u;
    SetBit(verdict, i, VerdictBit(ones, counted, coin));
  }
}

void TallyCounts(const TallyInput& input, uint8_t* planes, Isa isa) {
  CheckInput(input);
  const size_t n = input.ballots.size();
  SIGNVOTE_CHECK(n >= 1);
  const size_t bytes = BytesForBits(input.coordinates);
  const uint32_t count = CountPlanes(static_cast<uint32_t>(n));
  kTables.For(isa).planes[count - 1](input.ballots.data(), n, bytes, 0, planes);
  for (uint32_t p = 0; p < count; ++p) ClearPadding(planes + p * bytes, input.coordinates);
}

void TallyCountsReference(const TallyInput& input, uint8_t* planes) {
  CheckInput(input);
  const size_t bytes = BytesForBits(input.coordinates);
  const uint32_t count = CountPlanes(static_cast<uint32_t>(input.ballots.size()));
  std::fill_n(planes, count * bytes, uint8_t{0});
  for (uint64_t i = 0; i < input.coordinates; ++i) {
    uint32_t ones = 0;
    for (const uint8_t* ballot : input.ballots) ones += GetBit(ballot, i) ? 1u : 0u;
    for (uint32_t p = 0; p < count; ++p) SetBit(planes + p * bytes, i, ((ones >> p) & 1u) != 0);
  }
}

uint64_t CountAgreement(const uint8_t* ballot, const uint8_t* verdict, uint64_t coordinates) {
  const size_t whole = coordinates / kBitsPerByte;
  uint64_t differ = kTables.For(ActiveIsa()).count_differences(ballot, verdict, whole);
  if (const unsigned left = coordinates % kBitsPerByte; left != 0) {
    differ +=
        static_cast<uint64_t>(std::popcount((ballot[whole] ^ verdict[whole]) & ((1u << left) - 1)));
  }
  return coordinates - differ;
}

uint64_t CountTies(const TallyInput& input) {
  CheckInput(input);
  const size_t n = input.ballots.size();
  if (n == 0 || n % 2 != 0) return 0;
  const Table& table = kTables.For(ActiveIsa());
  const Threshold majority(n / 2 + 1);
  const size_t bytes = BytesForBits(input.coordinates);
  std::array<const uint8_t*, kTallyBallotsMax> rows;
  alignas(64) std::array<uint8_t, kCoinBytes> tied;
  uint64_t ties = 0;
  for (size_t from = 0; from < bytes; from += tied.size()) {
    const size_t length = std::min(tied.size(), bytes - from);
    for (size_t j = 0; j < n; ++j) rows[j] = input.ballots[j] + from;
    table.ties[majority.planes](rows.data(), n, length, majority.start, tied.data());
    ClearPadding(tied.data(), std::min<uint64_t>(input.coordinates - from * kBitsPerByte,
                                                 length * kBitsPerByte));
    ties += table.count_differences(tied.data(), nullptr, length);
  }
  return ties;
}

}  // namespace signvote
