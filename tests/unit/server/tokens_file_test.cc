#include "server/tokens_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/exit_codes.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class TokensFileTest : public ::testing::Test {
 protected:
  absl::StatusOr<run::TokenTable> Read(const std::string& text, uint32_t mode = 0600) {
    EXPECT_TRUE(WriteFileAtomically(fs_, path_, text, mode).ok());
    return ReadTokensFile(fs_, path_);
  }
  void ExpectRefused(const absl::Status& status, absl::StatusCode code, const std::string& words) {
    EXPECT_EQ(status.code(), code) << Describe(status);
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
    EXPECT_THAT(Describe(status),
                AllOf(HasSubstr(path_), HasSubstr(words), Not(HasSubstr("secret"))));
  }

  TempDir dir_;
  FileSystem* const fs_ = FileSystem::Posix();
  const std::string path_ = dir_ / "tokens";
};

TEST_F(TokensFileTest, APrivateFileIsReadWhole) {
  const auto table = Read("w0 secret\n# nobody\nw1 other");
  ASSERT_TRUE(table.ok()) << Describe(table.status());
  EXPECT_EQ(table->size(), 2u);
  EXPECT_TRUE(table->Check("w1", "other").ok());
}

TEST_F(TokensFileTest, AFileThatOthersCanReadIsRefused) {
  ExpectRefused(Read("w0 secret\n", 0644).status(), absl::StatusCode::kPermissionDenied,
                "chmod 600");
}

TEST_F(TokensFileTest, AFileThatIsNotThereOrHoldsNoTokensIsNamed) {
  ExpectRefused(ReadTokensFile(fs_, path_).status(), absl::StatusCode::kNotFound, "");
  ExpectRefused(Read("w0 a\nw0 secret\n").status(), absl::StatusCode::kInvalidArgument, ":2:");
  ExpectRefused(Read(std::string(5 << 20, '#')).status(), absl::StatusCode::kResourceExhausted, "");
}

}  // namespace
}  // namespace signvote
