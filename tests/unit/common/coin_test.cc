#include "common/coin.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace signvote {
namespace {

TEST(Coin, FinalizerIsSplitMix64) {
  // The first outputs of SplitMix64 with seed 0: states 0, increment, 2·increment.
  EXPECT_EQ(Fin(0), 0xE220A8397B1DCDAFu);
  EXPECT_EQ(Fin(0x9E3779B97F4A7C15u), 0x6E789E6AA1B965F4u);
}

TEST(Coin, FillEqualsTheDefinitionForEveryLengthAndStart) {
  for (size_t n = 0; n <= 67; ++n) {
    for (const uint64_t first : {uint64_t{0}, uint64_t{5}, ~uint64_t{0} - 20}) {
      std::vector<uint64_t> out(n + 1, 0xABCD);
      FillTieCoins(11, Round(n), first, std::span(out.data(), n));
      for (size_t k = 0; k < n; ++k)
        ASSERT_EQ(out[k], TieCoinWord(11, Round(n), first + k)) << n << " " << k;
      ASSERT_EQ(out[n], 0xABCDu) << "wrote past the end";
    }
  }
}

TEST(Coin, CoinsAreFairAndIndependentOfEachOther) {
  constexpr uint64_t kWords = 4096;
  constexpr double kBits = 64.0 * kWords;
  const double four_sigma = 4 * std::sqrt(kBits) / 2;
  int64_t ones = 0, own_ones = 0, agree_round = 0, agree_share = 0, agree_seed = 0, agree_tie = 0;
  for (uint64_t w = 0; w < kWords; ++w) {
    const uint64_t tie = TieCoinWord(1, Round(9), w);
    const uint64_t own = OwnCoinWord(1, Round(9), Share(0), w);
    ones += std::popcount(tie);
    own_ones += std::popcount(own);
    agree_round += std::popcount(~(tie ^ TieCoinWord(1, Round(10), w)));
    agree_seed += std::popcount(~(tie ^ TieCoinWord(2, Round(9), w)));
    agree_share += std::popcount(~(own ^ OwnCoinWord(1, Round(9), Share(1), w)));
    agree_tie += std::popcount(~(own ^ tie));
  }
  for (const int64_t count : {ones, own_ones, agree_round, agree_share, agree_seed, agree_tie}) {
    EXPECT_NEAR(static_cast<double>(count), kBits / 2, four_sigma);
  }
}

TEST(Coin, ZeroOfEitherSignCastsTheCoinAndNothingElseDoes) {
  for (const bool coin : {false, true}) {
    EXPECT_EQ(BallotBit(0.0f, coin), coin);
    EXPECT_EQ(BallotBit(-0.0f, coin), coin);
    EXPECT_TRUE(BallotBit(std::numeric_limits<float>::denorm_min(), coin));
    EXPECT_FALSE(BallotBit(-std::numeric_limits<float>::denorm_min(), coin));
    EXPECT_TRUE(BallotBit(std::numeric_limits<float>::infinity(), coin));
    EXPECT_FALSE(BallotBit(-std::numeric_limits<float>::infinity(), coin));
  }
}

TEST(Coin, VerdictIsTheMajorityAndTheCoinOnlyOnATie) {
  for (uint32_t n = 1; n <= 9; ++n) {
    for (uint32_t ones = 0; ones <= n; ++ones) {
      for (const bool coin : {false, true}) {
        const bool want = ones * 2 == n ? coin : ones * 2 > n;
        EXPECT_EQ(VerdictBit(ones, n, coin), want) << ones << " of " << n;
      }
    }
  }
}

}  // namespace
}  // namespace signvote
