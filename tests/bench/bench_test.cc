// The harness of the benches: what it prints beside a median must be true.
#include "tests/bench/bench.h"

#include <numeric>

#include <gtest/gtest.h>

namespace signvote::bench {
namespace {

std::vector<double> Numbers(size_t n) {
  std::vector<double> samples(n);
  std::iota(samples.begin(), samples.end(), 1.0);
  std::reverse(samples.begin(), samples.end());  // order does not matter
  return samples;
}

TEST(BenchTest, TheIntervalOfAMedianIsThatOfTheBinomialTables) {
  // Ranks of the lower end at 95 %, for n samples: Conover, Practical Nonparametric Statistics.
  for (const auto& [n, rank] :
       {std::pair<size_t, double>{6, 1}, {9, 2}, {15, 4}, {20, 6}, {31, 10}}) {
    const Interval interval = MedianInterval(Numbers(n));
    EXPECT_EQ(interval.low, rank) << n;
    EXPECT_EQ(interval.high, static_cast<double>(n) + 1 - rank) << n;
  }
}

TEST(BenchTest, OfTooFewSamplesTheIntervalIsAllOfThem) {
  for (const size_t n : {1u, 2u, 5u}) {
    const Interval interval = MedianInterval(Numbers(n));
    EXPECT_EQ(interval.low, 1);
    EXPECT_EQ(interval.high, static_cast<double>(n));
  }
}

TEST(BenchTest, TheMedianOfAnEvenNumberLiesBetweenItsNeighbours) {
  EXPECT_EQ(Summarise(Numbers(4)).median, 2.5);
  EXPECT_EQ(Summarise(Numbers(5)).median, 3);
}

}  // namespace
}  // namespace signvote::bench
