#include "server/run/minimal_rate.h"

#include <gtest/gtest.h>

namespace signvote::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Time At(Duration d) { return Time{} + d; }
constexpr MinimalRate::Options kOptions{.window = seconds(100), .bytes_per_second_min = 50};

TEST(MinimalRateTest, AWindowIsMissedWhenItPassesWithTooFewBytes) {
  MinimalRate rate(kOptions, At(seconds(7)));
  EXPECT_FALSE(rate.Missed(0, 1, At(seconds(106)))) << "the window has not passed";
  EXPECT_TRUE(rate.Missed(4'999, 1, At(seconds(107))));
  EXPECT_FALSE(rate.Missed(5'000, 1, At(seconds(107))));
}

TEST(MinimalRateTest, EachWindowCountsFromTheBytesOfItsStart) {
  MinimalRate rate(kOptions, At(seconds(0)));
  EXPECT_FALSE(rate.Missed(1'000'000, 1, At(seconds(100))));
  EXPECT_FALSE(rate.Missed(1'000'000, 1, At(seconds(199))));
  EXPECT_TRUE(rate.Missed(1'004'999, 1, At(seconds(200)))) << "what came early does not help";
  EXPECT_FALSE(rate.Missed(1'005'000, 1, At(seconds(200))));
}

TEST(MinimalRateTest, AWindowThatIsLookedAtLateWantsAsMuchMore) {
  MinimalRate rate(kOptions, At(seconds(0)));
  EXPECT_TRUE(rate.Missed(5'499, 1, At(seconds(110))));
  EXPECT_FALSE(rate.Missed(5'500, 1, At(seconds(110))));
}

TEST(MinimalRateTest, WhoSharesALinkOwesItsShare) {
  MinimalRate rate(kOptions, At(seconds(0)));
  EXPECT_TRUE(rate.Missed(499, 0.1, At(seconds(100))));
  EXPECT_FALSE(rate.Missed(500, 0.1, At(seconds(100))));
}

// The stranger's best: each time as little as the window wants.
TEST(MinimalRateTest, WhoTricklesAsSlowlyAsItMayIsDoneInTheTimeThatTheRateSays) {
  MinimalRate rate(kOptions, At(seconds(0)));
  constexpr uint64_t kBytes = 1'000'000;
  uint64_t moved = 0;
  Duration time{};
  while (moved < kBytes) {
    time += milliseconds(500);
    const auto owed = static_cast<uint64_t>(ToSeconds(time) * 50);
    // At the last moment of each window.
    if (time % seconds(100) == Duration::zero()) moved = owed;
    ASSERT_FALSE(rate.Missed(moved, 1, At(time)));
    ASSERT_LE(ToSeconds(time), kBytes / 50.0 + 200);
  }
}

}  // namespace
}  // namespace signvote::run
