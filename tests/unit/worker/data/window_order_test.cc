#include "worker/data/window_order.h"

#include <algorithm>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace signvote {
namespace {

constexpr uint64_t kSeed = 7;

// The windows that `shares` shares meet in steps [first, first + steps) of each.
std::vector<uint64_t> Met(const WindowOrder& order, uint32_t shares, uint64_t first,
                          uint64_t steps) {
  std::vector<uint64_t> met;
  for (uint32_t share = 0; share < shares; ++share) {
    for (uint64_t k = first; k < first + steps; ++k)
      met.push_back(order.First(kSeed, Share(share), k));
  }
  return met;
}

size_t Different(const std::vector<uint64_t>& met) {
  return std::set<uint64_t>(met.begin(), met.end()).size();
}

TEST(WindowOrderTest, AnEpochOfAShareIsEveryWindowOnce) {
  for (const uint64_t length : {1, 7, 128}) {
    for (const uint64_t tokens : {length + 1, 2 * length, 10 * length + 3, 1000 * length}) {
      const WindowOrder order(tokens, length);
      for (const uint32_t share : {0u, 1u, 5u, 4000000000u}) {
        for (uint64_t epoch = 0; epoch < 3; ++epoch) {
          std::vector<uint64_t> met;
          for (uint64_t k = 0; k < order.windows(); ++k)
            met.push_back(order.First(kSeed, Share(share), epoch * order.windows() + k));
          std::sort(met.begin(), met.end());
          for (uint64_t k = 0; k < met.size(); ++k) ASSERT_EQ(met[k], met[0] + k * length);
          EXPECT_LT(met[0], length);
          EXPECT_LE(met.back() + length + 1, tokens) << "the last target lies in the part";
        }
      }
    }
  }
}

TEST(WindowOrderTest, WhatAnEpochLeavesOutIsLessThanTwoWindows) {
  for (uint64_t tokens = 33; tokens < 400; ++tokens) {
    const WindowOrder order(tokens, 16);
    EXPECT_LT(tokens - order.windows() * 16, 3u * 16) << tokens;
    EXPECT_GE(order.windows(), 1u);
  }
}

TEST(WindowOrderTest, APowerOfTwoOfSharesMeetsEveryWindowOnceInAnEpochsWorth) {
  const WindowOrder order(128 * 1025, 128);
  ASSERT_EQ(order.windows(), 1024u);
  for (const uint32_t shares : {1u, 2u, 4u, 8u, 64u}) {
    const uint64_t steps = 1024 / shares;
    for (uint64_t epoch = 0; epoch < 2; ++epoch) {
      const auto met = Met(order, shares, epoch * 1024, steps);
      EXPECT_EQ(Different(met), 1024u) << shares << " shares";
    }
  }
}

TEST(WindowOrderTest, AnyNumberOfSharesMeetsMostWindowsInAnEpochsWorth) {
  const WindowOrder order(128 * 10001, 128);
  for (uint32_t shares = 1; shares <= 40; ++shares) {
    const uint64_t steps = order.windows() / shares;
    EXPECT_GE(Different(Met(order, shares, 0, steps)),
              static_cast<size_t>(0.82 * static_cast<double>(order.windows())))
        << shares << " shares";
  }
}

TEST(WindowOrderTest, SeedEpochAndCorpusChangeTheOrder) {
  const WindowOrder order(128 * 1025, 128);
  const auto orders = [&](uint64_t seed, uint64_t first) {
    std::vector<uint64_t> windows;
    for (uint64_t k = 0; k < 200; ++k)
      windows.push_back(order.First(seed, Share(0), first + k) / 128);
    return windows;
  };
  EXPECT_NE(orders(1, 0), orders(2, 0));
  EXPECT_NE(orders(1, 0), orders(1, 1024));
  // Neighbours of the order are no neighbours of the text, and where the windows lie is uniform.
  const auto windows = orders(1, 0);
  double sum = 0;
  int neighbours = 0;
  for (size_t k = 0; k < windows.size(); ++k) {
    sum += static_cast<double>(windows[k]) / 1024;
    if (k > 0) neighbours += windows[k] == windows[k - 1] + 1 ? 1 : 0;
  }
  EXPECT_NEAR(sum / 200, 0.5, 0.1);
  EXPECT_LE(neighbours, 3);
}

TEST(WindowOrderTest, TheCutBeginsElsewhereInEveryEpoch) {
  const WindowOrder order(128 * 1025, 128);
  std::set<uint64_t> offsets;
  for (uint64_t epoch = 0; epoch < 50; ++epoch)
    offsets.insert(order.First(kSeed, Share(0), epoch * 1024) % 128);
  EXPECT_GT(offsets.size(), 30u);
}

TEST(WindowOrderTest, TheLastStepOfTheLongestRunIsNoOverflow) {
  const WindowOrder order(uint64_t{1} << 62, 1);
  const uint64_t first = order.First(kSeed, Share(0xffffffff), ~uint64_t{0});
  EXPECT_LT(first, uint64_t{1} << 62);
}

}  // namespace
}  // namespace signvote
