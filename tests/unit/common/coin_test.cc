#include "common/coin.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "common/rng.h"

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

// Made by another implementation of the definition (common/coin.h).
TEST(Uniform, EveryTestVectorIsTrue) {
  constexpr struct {
    uint64_t seed, round;
    uint32_t share;
    uint64_t coordinate;
    uint16_t uniform;
  } kVectors[] = {
      {0x0ull, 0x0ull, 0x0u, 0ull, 0x0478},
      {0x0ull, 0x0ull, 0x0u, 1ull, 0x789b},
      {0x0ull, 0x0ull, 0x0u, 2ull, 0xa4b9},
      {0x0ull, 0x0ull, 0x0u, 3ull, 0x1e23},
      {0x0ull, 0x0ull, 0x0u, 4ull, 0x87cb},
      {0x7ull, 0x3ull, 0x2u, 1000ull, 0x02e2},
      {0x7ull, 0x3ull, 0x2u, 1001ull, 0x9004},
      {0x7ull, 0x3ull, 0x3u, 1000ull, 0x5806},
      {0x7ull, 0x4ull, 0x2u, 1000ull, 0x9f6d},
      {0xdeadbeefcafef00dull, 0x75bcd15ull, 0xffffffffu, 1099511627775ull, 0x6837},
      {0xffffffffffffffffull, 0xffffffffffffffffull, 0x3fu, 5ull, 0x7e45},
  };
  for (const auto& v : kVectors) {
    EXPECT_EQ(Uniform16(v.seed, Round(v.round), Share(v.share), v.coordinate), v.uniform)
        << v.seed << " " << v.round << " " << v.share << " " << v.coordinate;
    EXPECT_EQ((UniformWord(v.seed, Round(v.round), Share(v.share), v.coordinate / 4) >>
               (16 * (v.coordinate % 4))) &
                  0xFFFF,
              v.uniform);
  }
}

TEST(Uniform, UniformsAreUniformAndIndependentOfTheCoins) {
  constexpr uint64_t kWords = 4096;
  constexpr double kBits = 64.0 * kWords;
  const double four_sigma = 4 * std::sqrt(kBits) / 2;
  int64_t agree_tie = 0, agree_own = 0, agree_share = 0, agree_round = 0;
  double sum = 0;
  for (uint64_t w = 0; w < kWords; ++w) {
    const uint64_t word = UniformWord(1, Round(9), Share(0), w);
    for (int k = 0; k < 4; ++k) sum += static_cast<double>((word >> (16 * k)) & 0xFFFF);
    agree_tie += std::popcount(~(word ^ TieCoinWord(1, Round(9), w)));
    agree_own += std::popcount(~(word ^ OwnCoinWord(1, Round(9), Share(0), w)));
    agree_share += std::popcount(~(word ^ UniformWord(1, Round(9), Share(1), w)));
    agree_round += std::popcount(~(word ^ UniformWord(1, Round(10), Share(0), w)));
  }
  for (const int64_t count : {agree_tie, agree_own, agree_share, agree_round})
    EXPECT_NEAR(static_cast<double>(count), kBits / 2, four_sigma);
  // Mean 32767.5, deviation 65536/√12 over 4·kWords draws.
  EXPECT_NEAR(sum / (4.0 * kWords), 32767.5, 4 * 18918.6 / std::sqrt(4.0 * kWords));
}

// A run and its initial parameters often have the same seed.
TEST(Domains, InitialParametersShareNoStreamWithTheCoinsOfTheSameSeed) {
  for (uint64_t seed = 0; seed < 64; ++seed) {
    Rng parameters(DomainSeed(kInitDomain, seed), 5);
    for (uint64_t word = 0; word < 64; ++word) {
      const uint64_t drawn = parameters.Next();
      EXPECT_NE(drawn, TieCoinWord(seed, Round(5), word));
      EXPECT_NE(drawn, OwnCoinWord(seed, Round(5), Share(0), word));
      EXPECT_NE(drawn, UniformWord(seed, Round(5), Share(0), word));
    }
  }
}

}  // namespace
}  // namespace signvote
