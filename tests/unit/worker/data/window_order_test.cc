#include "worker/data/window_order.h"

#include <algorithm>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "common/rng.h"

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

// An order of so many windows of two tokens.
WindowOrder OrderOf(uint64_t windows) { return {2 * (windows + 1), 2}; }

TEST(WindowOrderTest, AnyNumberOfSharesByTurnsMeetsEveryWindowOnceBeforeAnyTwice) {
  for (const uint64_t windows :
       {1u, 2u, 3u, 5u, 7u, 8u, 9u, 10u, 12u, 17u, 60u, 61u, 64u, 97u, 255u, 1000u, 1023u, 5039u}) {
    const WindowOrder order = OrderOf(windows);
    ASSERT_EQ(order.windows(), windows);
    for (uint32_t shares = 1; shares <= 40; ++shares) {
      for (uint64_t epoch = 0; epoch < 2; ++epoch) {
        std::set<uint64_t> met;
        for (uint64_t turn = 0; turn < windows; ++turn) {
          const Share share(static_cast<uint32_t>(turn % shares));
          met.insert(order.First(kSeed, share, epoch * windows + turn / shares));
        }
        ASSERT_EQ(met.size(), windows) << shares << " shares, epoch " << epoch;
      }
    }
  }
}

// What a run sees in which workers come late, pause and go: of `shares` that were ever in it, each in
// whatever steps it took part in.
TEST(WindowOrderTest, WhoeverComesAndGoesNoWindowIsMetTwiceInTheFirstTurns) {
  const uint64_t windows = 1009;
  const WindowOrder order = OrderOf(windows);
  Rng rng(3, 4);
  for (uint32_t shares = 1; shares <= 9; ++shares) {
    std::vector<uint64_t> met;
    for (uint32_t share = 0; share < shares; ++share) {
      for (uint64_t k = 0; k < windows / shares; ++k)
        if (rng.Below(3) > 0) met.push_back(order.First(kSeed, Share(share), k));
    }
    EXPECT_EQ(Different(met), met.size()) << shares;
    EXPECT_GT(met.size(), windows / 2);
  }
}

// It cannot be all of them for every number (docs/decisions/0024-windows-by-turns.md).
TEST(WindowOrderTest, LaterTurnsMeetMostWindowsAgain) {
  const uint64_t windows = 5040;
  const WindowOrder order = OrderOf(windows);
  for (uint32_t shares = 2; shares <= 40; ++shares) {
    double sum = 0;
    for (uint32_t pass = 0; pass < shares; ++pass) {
      const uint64_t first = pass * windows / shares;
      const uint64_t end = (pass + 1) * windows / shares;
      const double met =
          static_cast<double>(Different(Met(order, shares, first, end - first))) / windows;
      EXPECT_GE(met, 0.67) << shares << " shares, pass " << pass;
      sum += met;
    }
    EXPECT_GE(sum / shares, shares <= 4 ? 0.94 : 0.78) << shares << " shares";
  }
}

TEST(WindowOrderTest, TheHighestShareOfTheSmallestAndTheLargestCorpusHasAnOrder) {
  for (const uint64_t windows : {1u, 2u, 100u}) {
    const WindowOrder order = OrderOf(windows);
    std::set<uint64_t> met;
    for (uint64_t k = 0; k < windows; ++k) met.insert(order.First(kSeed, Share(0xffffffff), k));
    EXPECT_EQ(met.size(), windows);
  }
  // Of as many shares as there can be, the last ones' first and last turn.
  const WindowOrder large(uint64_t{1} << 62, 1);
  std::set<uint64_t> met;
  for (uint32_t share = 0xfffffff0; share != 0; ++share) {
    for (const uint64_t k : {uint64_t{0}, (large.windows() >> 32) - 1})
      met.insert(large.First(kSeed, Share(share), k));
    EXPECT_LT(large.First(kSeed, Share(share), large.windows() - 1), large.windows());
  }
  EXPECT_EQ(met.size(), 2u * 16);
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
