#include "common/half_float.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace signvote {
namespace {

// Goal: all 65,536 patterns are widened exactly. Method: the value from the format's definition, in
// double, which holds every one of them.
TEST(HalfFloatTest, EveryF16PatternHasItsValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = static_cast<int>(bits >> 10 & 0x1f);
    const double mantissa = static_cast<double>(bits & 0x3ff);
    const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
    const float wide = WidenF16(static_cast<uint16_t>(bits));
    ASSERT_EQ(std::signbit(wide), sign < 0) << bits;
    if (exponent == 31) {
      ASSERT_EQ(std::isnan(wide), mantissa != 0) << bits;
      ASSERT_EQ(std::isinf(wide), mantissa == 0) << bits;
      continue;
    }
    const double value =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    ASSERT_EQ(static_cast<double>(wide), sign * value) << bits;
  }
}

TEST(HalfFloatTest, Bf16IsTheUpperHalfOfFp32) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    ASSERT_EQ(std::bit_cast<uint32_t>(WidenBf16(static_cast<uint16_t>(bits))), bits << 16);
  }
}

// Goal: rounding to nearest even, over all exponents. Method: of the two neighbours in bfloat16 the
// nearer one by exact distances in double, and at a tie the one whose last bit is 0.
TEST(HalfFloatTest, NarrowingToBf16TakesTheNearestAndOfTwoTheEven) {
  for (uint32_t upper = 0; upper < 0x7f80; ++upper) {
    const float below = WidenBf16(static_cast<uint16_t>(upper));
    const bool last = upper + 1 == 0x7f80;  // beyond it is infinity, as far as 2^128 would be
    const double above =
        last ? 0x1p128 : static_cast<double>(WidenBf16(static_cast<uint16_t>(upper + 1)));
    for (const uint32_t lower : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const float value = std::bit_cast<float>(upper << 16 | lower);
      const double down = static_cast<double>(value) - static_cast<double>(below);
      const double up = above - static_cast<double>(value);
      const bool to_above = up < down || (up == down && upper % 2 == 1);
      ASSERT_EQ(NarrowBf16(value), to_above ? upper + 1 : upper) << upper << " " << lower;
      ASSERT_EQ(NarrowBf16(-value), 0x8000 | (to_above ? upper + 1 : upper));
    }
  }
}

TEST(HalfFloatTest, NarrowingToBf16KeepsWhatIsNotFiniteAndWhatFits) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto narrow = static_cast<uint16_t>(bits);
    if (!std::isnan(WidenBf16(narrow))) {
      ASSERT_EQ(NarrowBf16(WidenBf16(narrow)), narrow);
    }
  }
  // All of its mantissa lies in the half that goes.
  for (const uint32_t nan : {0x7f800001u, 0xff800001u, 0x7fffffffu}) {
    const float narrowed = WidenBf16(NarrowBf16(std::bit_cast<float>(nan)));
    EXPECT_TRUE(std::isnan(narrowed)) << nan;
    EXPECT_EQ(std::signbit(narrowed), nan >> 31 == 1);
  }
}

}  // namespace
}  // namespace signvote
