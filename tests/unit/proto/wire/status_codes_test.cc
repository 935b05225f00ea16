#include <gtest/gtest.h>

#include <string>

#include "common/exit_codes.h"
#include "proto/wire/wire.h"

namespace signvote::wire {
namespace {

TEST(StatusCodesTest, EveryCodeKeepsItsNameAndMessageBothWays) {
  const std::pair<absl::StatusCode, grpc::StatusCode> codes[] = {
      {absl::StatusCode::kOk, grpc::OK},
      {absl::StatusCode::kCancelled, grpc::CANCELLED},
      {absl::StatusCode::kUnknown, grpc::UNKNOWN},
      {absl::StatusCode::kInvalidArgument, grpc::INVALID_ARGUMENT},
      {absl::StatusCode::kDeadlineExceeded, grpc::DEADLINE_EXCEEDED},
      {absl::StatusCode::kNotFound, grpc::NOT_FOUND},
      {absl::StatusCode::kAlreadyExists, grpc::ALREADY_EXISTS},
      {absl::StatusCode::kPermissionDenied, grpc::PERMISSION_DENIED},
      {absl::StatusCode::kResourceExhausted, grpc::RESOURCE_EXHAUSTED},
      {absl::StatusCode::kFailedPrecondition, grpc::FAILED_PRECONDITION},
      {absl::StatusCode::kAborted, grpc::ABORTED},
      {absl::StatusCode::kOutOfRange, grpc::OUT_OF_RANGE},
      {absl::StatusCode::kUnimplemented, grpc::UNIMPLEMENTED},
      {absl::StatusCode::kInternal, grpc::INTERNAL},
      {absl::StatusCode::kUnavailable, grpc::UNAVAILABLE},
      {absl::StatusCode::kDataLoss, grpc::DATA_LOSS},
      {absl::StatusCode::kUnauthenticated, grpc::UNAUTHENTICATED},
  };
  for (const auto& [ours, theirs] : codes) {
    const grpc::Status out = ToGrpc(absl::Status(ours, "why"));
    EXPECT_EQ(out.error_code(), theirs);
    EXPECT_EQ(out.error_message(), ours == absl::StatusCode::kOk ? "" : "why");
    const absl::Status back = FromGrpc(grpc::Status(theirs, "why"));
    EXPECT_EQ(back.code(), ours);
    EXPECT_EQ(std::string(back.message()), ours == absl::StatusCode::kOk ? "" : "why");
  }
}

// That of a run's end travels beside the status (run_end.h).
TEST(StatusCodesTest, AnExitCodeIsNoPartOfWhatAStatusCarries) {
  for (int code = 1; code <= static_cast<int>(kExitCodeMax); ++code) {
    const absl::Status ours =
        WithExitCode(absl::FailedPreconditionError("over"), static_cast<ExitCode>(code));
    const grpc::Status out = ToGrpc(ours);
    EXPECT_EQ(out.error_details(), "");
    EXPECT_EQ(ExitCodeFor(FromGrpc(out)), ExitCode::kRefused);
  }
  const grpc::Status details(grpc::StatusCode::FAILED_PRECONDITION, "over", "8");
  EXPECT_EQ(ExitCodeFor(FromGrpc(details)), ExitCode::kRefused) << "whatever a peer writes there";
}

TEST(StatusCodesTest, AMessageThatGrpcWouldNotCarryIsCut) {
  const grpc::Status out = ToGrpc(absl::NotFoundError(std::string(100'000, 'x')));
  EXPECT_EQ(out.error_code(), grpc::NOT_FOUND);
  EXPECT_EQ(out.error_message(), std::string(2000, 'x'));
}

}  // namespace
}  // namespace signvote::wire
