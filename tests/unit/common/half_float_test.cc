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

}  // namespace
}  // namespace signvote
