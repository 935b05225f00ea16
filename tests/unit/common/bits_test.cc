#include "common/bits.h"

#include <gtest/gtest.h>

#include <vector>

#include "common/rng.h"

namespace signvote {
namespace {

TEST(Bits, SizesRoundUp) {
  EXPECT_EQ(BytesForBits(0), 0u);
  EXPECT_EQ(BytesForBits(1), 1u);
  EXPECT_EQ(BytesForBits(8), 1u);
  EXPECT_EQ(BytesForBits(9), 2u);
  EXPECT_EQ(WordsForBits(64), 1u);
  EXPECT_EQ(WordsForBits(65), 2u);
}

TEST(Bits, SetThenGetIsTheIdentityForEveryLengthModulo64) {
  Rng rng(3, 1);
  for (size_t n = 0; n <= 130; ++n) {
    std::vector<uint8_t> packed(BytesForBits(n), 0xFF);
    std::vector<bool> values(n);
    for (size_t i = 0; i < n; ++i) {
      values[i] = rng.Next() & 1;
      SetBit(packed.data(), i, values[i]);
    }
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(GetBit(packed.data(), i), values[i]) << n << " " << i;
  }
}

TEST(Bits, LeastSignificantBitComesFirst) {
  uint8_t bytes[2] = {};
  SetBit(bytes, 0, true);
  SetBit(bytes, 9, true);
  EXPECT_EQ(bytes[0], 1);
  EXPECT_EQ(bytes[1], 2);
  SetBit(bytes, 0, false);
  EXPECT_EQ(bytes[0], 0);
}

TEST(Bits, PaddingIsZeroSeesEveryUnusedBit) {
  for (size_t bits = 1; bits <= 8; ++bits) {
    for (size_t at = 0; at < 8; ++at) {
      const uint8_t byte = static_cast<uint8_t>(1u << at);
      EXPECT_EQ(PaddingIsZero(&byte, bits), at < bits) << bits << " " << at;
    }
  }
}

TEST(Bits, WordsAreLittleEndianAtAnyAlignment) {
  uint8_t bytes[9] = {9, 1, 0, 0, 0, 0, 0, 0, 2};
  EXPECT_EQ(LoadWord(bytes + 1), 0x0200000000000001u);
  StoreWord(bytes + 1, 0x0102030405060708u);
  EXPECT_EQ(bytes[1], 8);
  EXPECT_EQ(bytes[8], 1);
}

TEST(Rng, ValuesFollowFromSeedStreamAndCounterAlone) {
  Rng a(1, 2), b(1, 2), other(1, 3);
  const uint64_t first = a.Next();
  EXPECT_EQ(first, b.Next());
  EXPECT_NE(first, other.Next());
  for (int i = 0; i < 100; ++i) a.Next();
  a.Seek(0);
  EXPECT_EQ(a.Next(), first);
}

TEST(Rng, BelowStaysBelowAndReachesEverything) {
  Rng rng(4, 4);
  std::vector<int> seen(7, 0);
  for (int i = 0; i < 7000; ++i) {
    const uint64_t v = rng.Below(7);
    ASSERT_LT(v, 7u);
    ++seen[v];
  }
  for (const int count : seen) EXPECT_NEAR(count, 1000, 5 * 30);  // 5 standard deviations
}

TEST(Rng, UniformIsInTheHalfOpenUnitInterval) {
  Rng rng(5, 5);
  double sum = 0;
  for (int i = 0; i < 10000; ++i) {
    const double u = rng.Uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 5 * 0.289 / 100);
}

}  // namespace
}  // namespace signvote
