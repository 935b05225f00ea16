#include "server/run/rate_limit.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>

namespace signvote::run {
namespace {

using std::chrono::seconds;

constexpr Time At(Duration d) { return Time{} + d; }

TEST(RateLimit, AFullBudgetIsToldAndWhatFollowsIsCounted) {
  RateLimit limit(
      {.each = {.burst = 2, .refill = seconds(10)}, .all = RateLimit::Budget{.burst = 100}});
  EXPECT_EQ(limit.Take("a", At(seconds(0))), 0u);
  EXPECT_EQ(limit.Take("a", At(seconds(0))), 0u);
  for (int i = 0; i < 1'500; ++i) EXPECT_FALSE(limit.Take("a", At(seconds(9))).has_value());
  EXPECT_EQ(limit.held_back(), 1'500u);
  EXPECT_EQ(limit.Take("b", At(seconds(9))), 0u);
  EXPECT_EQ(limit.Take("a", At(seconds(10))), 1'500u);
  EXPECT_FALSE(limit.Take("a", At(seconds(19))).has_value());
  EXPECT_EQ(limit.Take("a", At(seconds(20))), 1u);
}

TEST(RateLimit, ABudgetFillsUpToItsBurst) {
  RateLimit limit(
      {.each = {.burst = 2, .refill = seconds(10)}, .all = RateLimit::Budget{.burst = 100}});
  (void)limit.Take("a", At(seconds(0)));
  (void)limit.Take("a", At(seconds(0)));
  EXPECT_TRUE(limit.Take("a", At(seconds(1'000))).has_value());
  EXPECT_TRUE(limit.Take("a", At(seconds(1'000))).has_value());
  EXPECT_FALSE(limit.Take("a", At(seconds(1'000))).has_value());
}

TEST(RateLimit, WhatIsLeftAndWhatComesBackAreNoMoreThanTheBurst) {
  RateLimit limit({.each = {.burst = 3, .refill = seconds(10)}, .all = std::nullopt});
  EXPECT_TRUE(limit.Take("a", At(seconds(5'000))).has_value());
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(limit.Take("a", At(seconds(9'000))).has_value()) << i;
  EXPECT_FALSE(limit.Take("a", At(seconds(9'000))).has_value());
}

// Time counts from the first line on, not from the beginning of the clock.
TEST(RateLimit, AFreshKeyWaitsForItsFirstRefill) {
  RateLimit limit({.each = {.burst = 1, .refill = seconds(10)}, .all = std::nullopt});
  EXPECT_TRUE(limit.Take("a", At(seconds(5'000))).has_value());
  EXPECT_FALSE(limit.Take("a", At(seconds(5'009))).has_value());
  EXPECT_TRUE(limit.Take("a", At(seconds(5'010))).has_value());
}

TEST(RateLimit, TheKeyThatWasAskedAboutLongestAgoMakesRoom) {
  RateLimit limit({.each = {.burst = 1, .refill = seconds(10'000)}, .all = std::nullopt});
  for (size_t i = 0; i < RateLimit::kKeysMax; ++i) {
    EXPECT_TRUE(limit.Take("k" + std::to_string(i), At(seconds(i))).has_value());
  }
  for (const char* key : {"k0", "k1"})
    EXPECT_FALSE(limit.Take(key, At(seconds(2'000))).has_value());
  EXPECT_TRUE(limit.Take("new", At(seconds(2'001))).has_value());
  for (const char* key : {"k0", "k1"})
    EXPECT_FALSE(limit.Take(key, At(seconds(2'002))).has_value()) << "asked about lately";
  EXPECT_TRUE(limit.Take("k2", At(seconds(2'003))).has_value()) << "forgotten, so it is new";
}

TEST(RateLimit, ManyKeysTogetherHaveABudgetToo) {
  RateLimit limit({.each = {.burst = 8, .refill = seconds(10)},
                   .all = RateLimit::Budget{.burst = 3, .refill = seconds(1)}});
  int told = 0;
  for (int i = 0; i < 100; ++i) {
    told += limit.Take("k" + std::to_string(i), At(seconds(0))).has_value() ? 1 : 0;
  }
  EXPECT_EQ(told, 3);
  EXPECT_EQ(limit.Take("k99", At(seconds(1))), 1u);
  EXPECT_FALSE(limit.Take("k98", At(seconds(1))).has_value());
}

TEST(RateLimit, WithoutABudgetOfAllEachKeyHasItsOwn) {
  RateLimit limit({.each = {.burst = 2, .refill = seconds(10)}, .all = std::nullopt});
  for (int i = 0; i < 500; ++i) {
    const std::string key = "k" + std::to_string(i);
    EXPECT_TRUE(limit.Take(key, At(seconds(0))).has_value());
    EXPECT_TRUE(limit.Take(key, At(seconds(0))).has_value());
    EXPECT_FALSE(limit.Take(key, At(seconds(0))).has_value());
  }
}

TEST(RateLimit, AKeyKnowsHowLongItWaits) {
  RateLimit limit({.each = {.burst = 2, .refill = seconds(10)}, .all = std::nullopt});
  EXPECT_EQ(limit.Wait("a", At(seconds(0))), seconds(0));
  (void)limit.Take("a", At(seconds(0)));
  EXPECT_EQ(limit.Wait("a", At(seconds(3))), seconds(0));
  (void)limit.Take("a", At(seconds(3)));
  EXPECT_EQ(limit.Wait("a", At(seconds(3))), seconds(7));
  EXPECT_EQ(limit.Wait("a", At(seconds(9))), seconds(1));
  EXPECT_EQ(limit.Wait("a", At(seconds(10))), seconds(0));
  EXPECT_TRUE(limit.Take("a", At(seconds(10))).has_value());
  EXPECT_EQ(limit.Wait("a", At(seconds(10))), seconds(10));
}

TEST(RateLimit, TheKeyAskedAboutLongestAgoMakesRoom) {
  RateLimit limit({.each = {.burst = 1, .refill = seconds(1'000'000)},
                   .all = RateLimit::Budget{.burst = 1'000'000, .refill = seconds(1)}});
  for (size_t i = 0; i < RateLimit::kKeysMax; ++i) {
    EXPECT_TRUE(limit.Take("k" + std::to_string(i), At(seconds(i))).has_value());
  }
  EXPECT_FALSE(limit.Take("k0", At(seconds(5'000))).has_value());
  EXPECT_TRUE(limit.Take("new", At(seconds(5'001))).has_value());
  // k1 was the oldest and is unknown again; k0, asked about since, is not.
  EXPECT_FALSE(limit.Take("k0", At(seconds(5'002))).has_value());
  EXPECT_TRUE(limit.Take("k1", At(seconds(5'003))).has_value());
}

}  // namespace
}  // namespace signvote::run
