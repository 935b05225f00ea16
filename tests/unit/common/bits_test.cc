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

}  // namespace
}  // namespace signvote
