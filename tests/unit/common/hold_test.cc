#include "common/hold.h"

#include <gtest/gtest.h>

#include <vector>

namespace signvote {
namespace {

using std::chrono::minutes;
using std::chrono::seconds;

// Time passes while it sleeps, and only then.
class HoldTest : public testing::Test {
 protected:
  // A write that fails until `mended`.
  absl::Status Hold(Duration linger, Duration mended) {
    const Time begin = clock_.Now();
    return WriteOrHold(&clock_,
                       {.what = "it is not written",
                        .remedy = "mend it",
                        .linger = linger,
                        .stop_requested = [this] { return clock_.Now() >= stop_at_; },
                        .take_save = [this] { return clock_.Now() >= ask_at_; }},
                       [&]() -> absl::Status {
                         attempts_.push_back(clock_.Now() - begin);
                         if (clock_.Now() - begin >= mended) return absl::OkStatus();
                         return absl::ResourceExhaustedError("the disk is full");
                       });
  }

  FakeClock clock_;
  Time stop_at_ = Time{} + minutes(10'000), ask_at_ = stop_at_;
  std::vector<Duration> attempts_;
};

TEST_F(HoldTest, WhatFailsIsTriedAgainAtGrowingIntervalsUntilItStands) {
  EXPECT_TRUE(Hold(minutes(10), seconds(200)).ok());
  EXPECT_EQ(attempts_,
            (std::vector<Duration>{seconds(0), seconds(5), seconds(15), seconds(35), seconds(75),
                                   seconds(135), seconds(195), seconds(255)}));
}

TEST_F(HoldTest, AfterTheLingerItReturnsWhatTheLastAttemptDid) {
  const absl::Status status = Hold(seconds(12), minutes(10));
  EXPECT_EQ(status, absl::ResourceExhaustedError("the disk is full"));
  EXPECT_EQ(attempts_, (std::vector<Duration>{seconds(0), seconds(5), seconds(12)}));
}

TEST_F(HoldTest, WithoutALingerThereIsOneAttempt) {
  EXPECT_FALSE(Hold({}, seconds(1)).ok());
  EXPECT_EQ(attempts_.size(), 1u);
}

TEST_F(HoldTest, WhoAsksNeedNotWait) {
  ask_at_ = clock_.Now() + seconds(1);
  EXPECT_TRUE(Hold(minutes(10), seconds(1)).ok());
  EXPECT_EQ(attempts_.back(), Duration(seconds(1)));
}

TEST_F(HoldTest, AStopGivesItUpUnlessItCameBefore) {
  stop_at_ = clock_.Now() + seconds(20);
  EXPECT_FALSE(Hold(minutes(10), minutes(1)).ok());
  EXPECT_EQ(attempts_.back(), Duration(seconds(20)));
  attempts_.clear();
  EXPECT_TRUE(Hold(minutes(10), minutes(1)).ok());
}

}  // namespace
}  // namespace signvote
