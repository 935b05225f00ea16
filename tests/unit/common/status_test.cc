#include "common/status.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/cord.h"
#include "common/check.h"

namespace signvote {
namespace {

absl::Status Passes(const absl::Status& status) {
  SIGNVOTE_RETURN_IF_ERROR(status);
  return absl::AlreadyExistsError("went on");
}

absl::StatusOr<int> Doubled(absl::StatusOr<std::unique_ptr<int>> value) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<int> v, std::move(value));
  return 2 * *v;
}

TEST(Status, ReturnIfErrorStopsOnlyAtErrors) {
  EXPECT_EQ(Passes(absl::OkStatus()).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Passes(absl::DataLossError("x")).code(), absl::StatusCode::kDataLoss);
}

TEST(Status, AssignOrReturnMovesTheValueOrPassesTheError) {
  EXPECT_EQ(*Doubled(std::make_unique<int>(21)), 42);
  EXPECT_EQ(Doubled(absl::NotFoundError("x")).status().code(), absl::StatusCode::kNotFound);
}

TEST(Status, ContextGoesBeforeTheMessageAndKeepsCodeAndPayload) {
  absl::Status status = absl::DataLossError("checksum");
  status.SetPayload("url", absl::Cord("value"));
  const absl::Status with = WithContext(status, "file x");
  EXPECT_EQ(with.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(std::string(with.message()), "file x: checksum");
  EXPECT_EQ(*with.GetPayload("url"), "value");
  EXPECT_TRUE(WithContext(absl::OkStatus(), "x").ok());
}

TEST(Status, DescribeIsOneLineForAPerson) {
  EXPECT_EQ(Describe(absl::InvalidArgumentError("text")), "INVALID_ARGUMENT: text");
  EXPECT_EQ(Describe(absl::OkStatus()), "OK");
}

TEST(Status, StringViewsCrossBothWays) {
  EXPECT_EQ(ToStd(ToAbsl(std::string_view("a\0b", 3))), std::string_view("a\0b", 3));
}

TEST(CheckDeathTest, AFailedCheckNamesConditionAndPlaceAndAborts) {
  EXPECT_DEATH(SIGNVOTE_CHECK(1 + 1 == 3), "status_test.cc:[0-9]+: check failed: 1 \\+ 1 == 3");
  SIGNVOTE_CHECK(true);
}

}  // namespace
}  // namespace signvote
