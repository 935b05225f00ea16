// Goal:   of two who want a lock one has it, until it lets go.
#include "common/file_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using testing::HasSubstr;

TEST(FileLockTest, ASecondHolderIsRefusedUntilTheFirstLetsGo) {
  const TempDir dir;
  const std::string path = dir / "lock";
  auto first = FileLock::Take(path);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = FileLock::Take(path);
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status()));
  EXPECT_EQ(ExitCodeFor(second.status()), ExitCode::kBadInput);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(path));
  first->reset();
  EXPECT_TRUE(FileLock::Take(path).ok());
}

TEST(FileLockTest, WhatCannotBeOpenedIsToldByItsPath) {
  const TempDir dir;
  const auto none = FileLock::Take(dir / "none/lock");
  EXPECT_TRUE(absl::IsNotFound(none.status()));
  EXPECT_EQ(ExitCodeFor(none.status()), ExitCode::kBadInput);
  EXPECT_THAT(std::string(none.status().message()), HasSubstr(dir / "none/lock"));
}

}  // namespace
}  // namespace signvote
