#include "common/exit_codes.h"

#include <gtest/gtest.h>

#include "common/status.h"

namespace signvote {
namespace {

TEST(ExitCodes, EachStatusCodeEndsAProgramWithItsExitCode) {
  EXPECT_EQ(ExitCodeFor(absl::OkStatus()), ExitCode::kOk);
  EXPECT_EQ(ExitCodeFor(absl::InvalidArgumentError("")), ExitCode::kUsage);
  for (const auto code :
       {absl::StatusCode::kNotFound, absl::StatusCode::kDataLoss, absl::StatusCode::kOutOfRange}) {
    EXPECT_EQ(ExitCodeFor(absl::Status(code, "x")), ExitCode::kBadInput);
  }
  for (const auto code : {absl::StatusCode::kPermissionDenied, absl::StatusCode::kUnauthenticated,
                          absl::StatusCode::kAlreadyExists, absl::StatusCode::kFailedPrecondition,
                          absl::StatusCode::kUnimplemented}) {
    EXPECT_EQ(ExitCodeFor(absl::Status(code, "x")), ExitCode::kRefused);
  }
  for (const auto code : {absl::StatusCode::kUnavailable, absl::StatusCode::kDeadlineExceeded,
                          absl::StatusCode::kResourceExhausted, absl::StatusCode::kAborted}) {
    EXPECT_EQ(ExitCodeFor(absl::Status(code, "x")), ExitCode::kUnavailable);
  }
  for (const auto code :
       {absl::StatusCode::kInternal, absl::StatusCode::kUnknown, absl::StatusCode::kCancelled}) {
    EXPECT_EQ(ExitCodeFor(absl::Status(code, "x")), ExitCode::kInternal);
  }
}

TEST(ExitCodes, AMarkedStatusKeepsItsExitCodeThroughContext) {
  for (int code = 1; code <= static_cast<int>(kExitCodeMax); ++code) {
    const absl::Status marked =
        WithExitCode(absl::UnavailableError("x"), static_cast<ExitCode>(code));
    EXPECT_EQ(ExitCodeFor(WithContext(marked, "while testing")), static_cast<ExitCode>(code));
  }
}

TEST(ExitCodes, TwoOfThemAreTheEndOfARun) {
  for (int code = 0; code <= static_cast<int>(kExitCodeMax); ++code)
    EXPECT_EQ(IsRunEnd(static_cast<ExitCode>(code)), code == 8 || code == 9) << code;
}

TEST(ExitCodes, OkStaysOkWhateverItIsMarkedWith) {
  EXPECT_EQ(ExitCodeFor(WithExitCode(absl::OkStatus(), ExitCode::kDiverged)), ExitCode::kOk);
}

TEST(ExitCodes, ADamagedMarkIsIgnored) {
  absl::Status status = absl::NotFoundError("x");
  status.SetPayload("signvote/exit-code", absl::Cord("4711"));
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
}

}  // namespace
}  // namespace signvote
