#include "server/run/fetch_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace signvote::run {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr Time At(Duration d) { return Time{} + d; }
const std::string kHost = "ipv4:10.0.0.1";

// A thousand workers on machines that go away every minute, all behind one address.
TEST(FetchBudgetTest, HonestRestartsAreNeverRefused) {
  constexpr uint32_t kWorkers = 1000;
  FetchBudget budget({}, kWorkers);
  for (uint32_t minute = 0; minute < 100; ++minute) {
    for (uint32_t w = 0; w < kWorkers; ++w) {
      const Time now = At(minute * seconds(60) + w * std::chrono::milliseconds(10));
      // Every fourth time the first transfer fails.
      for (int tries = (minute + w) % 4 == 0 ? 2 : 1; tries > 0; --tries) {
        ASSERT_TRUE(budget.Take("w" + std::to_string(w), kHost, now).ok())
            << "worker " << w << ", minute " << minute;
      }
    }
  }
}

TEST(FetchBudgetTest, OneThatComesWithoutPauseGetsItsBurstAndThenWhatComesBack) {
  FetchBudget budget({.burst = 16, .refill = seconds(30)}, 1000);
  uint32_t got = 0;
  for (int second = 0; second < 600; ++second) {
    for (int i = 0; i < 5; ++i) got += budget.Take("liar", kHost, At(seconds(second))).ok() ? 1 : 0;
  }
  EXPECT_EQ(got, 16u + 19u);
}

TEST(FetchBudgetTest, ARefusalSaysWhoseBudgetIsSpentAndWhenMoreIsThere) {
  FetchBudget budget({.burst = 1, .refill = seconds(30)}, 2);
  ASSERT_TRUE(budget.Take("a", kHost, At(seconds(0))).ok());
  const absl::Status name = budget.Take("a", kHost, At(seconds(10)));
  EXPECT_EQ(name.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(name.message()), HasSubstr("worker 'a'"));
  EXPECT_THAT(std::string(name.message()), HasSubstr("try again in 20 s"));
  ASSERT_TRUE(budget.Take("b", kHost, At(seconds(10))).ok());
  const absl::Status host = budget.Take("c", kHost, At(seconds(10)));
  EXPECT_EQ(host.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(host.message()), HasSubstr("host (ipv4:10.0.0.1)"));
  EXPECT_THAT(std::string(host.message()), HasSubstr("try again in 5 s"));
  EXPECT_TRUE(budget.Take("c", "ipv4:10.0.0.2", At(seconds(10))).ok());
  EXPECT_FALSE(budget.Take("c", kHost, At(seconds(15))).ok()) << "it fetched at the other host";
}

TEST(FetchBudgetTest, WhatIsRefusedSpendsNothing) {
  FetchBudget budget({.burst = 1, .refill = seconds(30)}, 1);
  ASSERT_TRUE(budget.Take("a", kHost, At(seconds(0))).ok());
  for (int i = 0; i < 100; ++i) {
    EXPECT_FALSE(budget.Take("b", kHost, At(seconds(1))).ok()) << "of its host";
    EXPECT_FALSE(budget.Take("a", "ipv4:10.0.0.2", At(seconds(1))).ok()) << "of its name";
  }
  EXPECT_TRUE(budget.Take("b", "ipv4:10.0.0.2", At(seconds(1))).ok());
}

}  // namespace
}  // namespace signvote::run
