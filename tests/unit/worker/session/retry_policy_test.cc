#include "worker/session/retry_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/exit_codes.h"

namespace signvote {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

const RetryLimits kLimits{.connect_timeout = seconds(20), .server_timeout = seconds(600)};
const DialContext kDial{"head:9", true, "", ""};

absl::Status After(const ConnectionEnd& end, Duration lost_for = {}, int hang_ups = 0) {
  return AfterConnection(end, lost_for, hang_ups, kLimits, "w1", kDial);
}

// Goal: the table of the header, for every status.
TEST(RetryPolicyTest, ARefusalEndsTheSessionAndAnythingElseIsDialledAgain) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "because");
    bool refusal = false;
    switch (status.code()) {
      case absl::StatusCode::kUnauthenticated:
      case absl::StatusCode::kPermissionDenied:
      case absl::StatusCode::kFailedPrecondition:
      case absl::StatusCode::kAlreadyExists:
      case absl::StatusCode::kInvalidArgument:
      case absl::StatusCode::kUnimplemented:
      case absl::StatusCode::kNotFound:
        refusal = true;
        break;
      default:
        break;
    }
    for (const bool welcomed : {false, true}) {
      const bool over = status.code() == absl::StatusCode::kDeadlineExceeded;
      const bool gives_up =
          refusal || over || (status.code() == absl::StatusCode::kResourceExhausted && !welcomed);
      const absl::Status after =
          After({.status = status, .welcomed = welcomed, .ever_welcomed = welcomed});
      EXPECT_EQ(after.ok(), !gives_up) << status << (welcomed ? ", welcomed" : "");
      if (!gives_up) continue;
      EXPECT_EQ(after.code(), status.code());
      EXPECT_EQ(ExitCodeFor(after), over ? ExitCode::kWaitTimeout : ExitCode::kRefused);
      EXPECT_EQ(std::string(after.message()), over ? "server head:9 has ended the run: because"
                                                   : "server head:9 refused worker w1: because");
    }
  }
}

TEST(RetryPolicyTest, ARunThatEndedBadlyEndsItsWorkersWithTheServersExitCode) {
  for (const ExitCode code : kRunEnds) {
    ConnectionEnd end{.status = WithExitCode(absl::FailedPreconditionError("because"), code)};
    for (const bool welcomed : {false, true}) {
      end.welcomed = end.ever_welcomed = welcomed;
      EXPECT_EQ(ExitCodeFor(After(end)), code);
      EXPECT_EQ(std::string(After(end).message()), "server head:9 has ended the run: because");
    }
    end.by_us = true;
    EXPECT_EQ(ExitCodeFor(After(end)), ExitCode::kRefused);
  }
}

TEST(RetryPolicyTest, WhatThisSideCannotWorkWithIsSaidSo) {
  const absl::Status after = After(
      {.status = absl::InvalidArgumentError("malformed"), .by_us = true, .ever_welcomed = true});
  EXPECT_EQ(std::string(after.message()), "worker w1 cannot work with server head:9: malformed");
}

TEST(RetryPolicyTest, TheServerIsLookedForAsLongAsItsPastDeserves) {
  const absl::Status gone = absl::UnavailableError("connection refused");
  struct Case {
    ConnectionEnd end;
    Duration patience;
    const char* words;
  };
  const Case cases[] = {
      {{.status = gone}, seconds(20), "could not reach server head:9 within 20 s (last error: "},
      {{.status = gone, .ever_welcomed = true},
       seconds(600),
       "lost server head:9; it did not come back within 600 s (last error: "},
      {{.status = gone, .ever_welcomed = true, .finish_seen = true},
       kFinishedPatience,
       "lost server head:9; it did not come back within 30 s (last error: "},
  };
  for (const Case& c : cases) {
    EXPECT_TRUE(After(c.end, c.patience - milliseconds(1)).ok()) << c.words;
    const absl::Status after = After(c.end, c.patience);
    EXPECT_EQ(after.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(after.message()), HasSubstr(c.words));
    EXPECT_THAT(std::string(after.message()), HasSubstr("connection refused"));
  }
}

TEST(RetryPolicyTest, AnEndInGoodOrderThatNobodyAskedForIsALostServer) {
  const absl::Status after = After({.status = absl::OkStatus()}, seconds(20));
  EXPECT_EQ(after.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(after.message()), HasSubstr("the server closed the session"));
}

TEST(RetryPolicyTest, ADialMistakeIsNamedUnlessTheServerWasThereBefore) {
  const absl::Status hang_up =
      absl::UnavailableError("failed to connect to all addresses: Socket closed");
  EXPECT_TRUE(After({.status = hang_up}, {}, kHangUpsToBeSure - 1).ok());
  EXPECT_EQ(After({.status = hang_up}, {}, kHangUpsToBeSure).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(After({.status = hang_up, .ever_welcomed = true}, {}, kHangUpsToBeSure).ok());
}

TEST(RetryPolicyTest, TimeCountsFromTheLastConnectionThatWasWelcomed) {
  const Time start = Time{} + seconds(1000);
  RetryPolicy policy(kLimits, "w1", kDial, 1, start);
  const ConnectionEnd never{.status = absl::UnavailableError("x")};
  EXPECT_TRUE(policy.Ended(never, start + seconds(19)).ok());
  EXPECT_FALSE(policy.Ended(never, start + seconds(20)).ok());

  RetryPolicy lost(kLimits, "w1", kDial, 1, start);
  ConnectionEnd end = never;
  end.ever_welcomed = end.welcomed = true;
  EXPECT_TRUE(lost.Ended(end, start + seconds(5000)).ok()) << "it was there until now";
  end.welcomed = false;
  EXPECT_TRUE(lost.Ended(end, start + seconds(5599)).ok());
  EXPECT_FALSE(lost.Ended(end, start + seconds(5600)).ok());
}

TEST(RetryPolicyTest, HangUpsCountOnlyInARow) {
  RetryPolicy policy(kLimits, "w1", kDial, 1, Time{});
  const ConnectionEnd hang_up{
      .status = absl::UnavailableError("failed to connect to all addresses: Socket closed")};
  const ConnectionEnd refused{.status = absl::UnavailableError("connection refused")};
  for (int i = 1; i < kHangUpsToBeSure; ++i) EXPECT_TRUE(policy.Ended(hang_up, Time{}).ok());
  EXPECT_TRUE(policy.Ended(refused, Time{}).ok());
  for (int i = 1; i < kHangUpsToBeSure; ++i) EXPECT_TRUE(policy.Ended(hang_up, Time{}).ok());
  EXPECT_FALSE(policy.Ended(hang_up, Time{}).ok());
}

TEST(RetryPolicyTest, WaitsGrowUntilSomethingGoesWell) {
  RetryPolicy policy(kLimits, "w1", kDial, 1, Time{});
  EXPECT_LE(policy.NextWait(), Backoff::kFirst);
  for (int i = 0; i < 10; ++i) (void)policy.NextWait();
  EXPECT_GE(policy.NextWait(), Backoff::kLongest / 2);
  policy.Progress();
  EXPECT_LE(policy.NextWait(), Backoff::kFirst);
}

}  // namespace
}  // namespace signvote
