#include "common/hold.h"

#include <gtest/gtest.h>

#include <vector>

#include "common/exit_codes.h"

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
                         return failure_;
                       });
  }

  FakeClock clock_;
  absl::Status failure_ =
      WithExitCode(absl::ResourceExhaustedError("the disk is full"), ExitCode::kBadInput);
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
  EXPECT_EQ(status, failure_);
  EXPECT_EQ(attempts_, (std::vector<Duration>{seconds(0), seconds(5), seconds(12)}));
}

TEST_F(HoldTest, WithoutALingerThereIsOneAttempt) {
  EXPECT_FALSE(Hold({}, seconds(1)).ok());
  EXPECT_EQ(attempts_.size(), 1u);
}

TEST_F(HoldTest, WhatNobodyCanMendIsNotHeld) {
  for (const absl::Status& failure :
       {absl::UnavailableError("the GPU is gone"), absl::InternalError("a bug"),
        absl::ResourceExhaustedError("no memory for a copy"),
        absl::FailedPreconditionError("no parameters"), absl::DataLossError("the file was cut"),
        WithExitCode(absl::DataLossError("the file was cut"), ExitCode::kBadInput)}) {
    failure_ = failure;
    attempts_.clear();
    EXPECT_EQ(Hold(minutes(10), minutes(1)), failure);
    EXPECT_EQ(attempts_.size(), 1u) << failure;
  }
}

TEST_F(HoldTest, WhatTheFileSystemFailsWithIsHeldWhateverItIs) {
  for (const absl::StatusCode code :
       {absl::StatusCode::kNotFound, absl::StatusCode::kPermissionDenied,
        absl::StatusCode::kUnknown, absl::StatusCode::kFailedPrecondition}) {
    failure_ = WithExitCode(absl::Status(code, "a disk"), ExitCode::kBadInput);
    EXPECT_TRUE(Hold(minutes(10), minutes(1)).ok()) << failure_;
  }
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
