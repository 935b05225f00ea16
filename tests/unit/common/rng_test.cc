#include "common/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace signvote {
namespace {

TEST(RngTest, ValuesFollowFromSeedStreamAndCounterAlone) {
  Rng a(1, 2), b(1, 2), other(1, 3);
  const uint64_t first = a.Next();
  EXPECT_EQ(first, b.Next());
  EXPECT_NE(first, other.Next());
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.Next(), b.Next());
}

TEST(RngTest, BelowStaysBelowAndReachesEverything) {
  Rng rng(4, 4);
  std::vector<int> seen(7, 0);
  for (int i = 0; i < 7000; ++i) {
    const uint64_t v = rng.Below(7);
    ASSERT_LT(v, 7u);
    ++seen[v];
  }
  for (const int count : seen) EXPECT_NEAR(count, 1000, 5 * 30);  // 5 standard deviations
}

TEST(RngTest, UniformIsInTheHalfOpenUnitInterval) {
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

// Method: of n draws with variance 1 the mean has deviation 1/√n; the variance of a sum of four
// uniforms has one of √((kurtosis − 1)/n) with kurtosis 3 − 1.2/4.
TEST(RngTest, BellHasMeanZeroDeviationOneAndBoundedTails) {
  constexpr int kDraws = 100'000;
  Rng rng(6, 6);
  double sum = 0, squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double x = rng.Bell();
    ASSERT_LE(std::abs(x), 3.4642);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0, 5 / std::sqrt(kDraws));
  EXPECT_NEAR(squares / kDraws, 1, 5 * std::sqrt(1.7 / kDraws));
}

}  // namespace
}  // namespace signvote
