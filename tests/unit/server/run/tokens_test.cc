#include "server/run/tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote::run {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

absl::StatusOr<TokenTable> Parse(const std::string& text) {
  return TokenTable::Parse(text, "tokens");
}

TEST(TokenTableTest, EachWorkerHasItsOwnToken) {
  const auto table = Parse("# workers\nw0  secret-0\n\nw1 secret-1 # the second\n");
  ASSERT_TRUE(table.ok()) << Describe(table.status());
  EXPECT_EQ(table->size(), 2u);
  EXPECT_TRUE(table->Check("w0", "secret-0").ok());
  EXPECT_TRUE(table->Check("w1", "secret-1").ok());
  for (const auto& [name, token] :
       std::vector<std::pair<std::string, std::string>>{{"w0", "secret-1"},
                                                        {"w0", "secret-"},
                                                        {"w0", "secret-00"},
                                                        {"w0", ""},
                                                        {"w2", "secret-0"},
                                                        {"w2", ""}}) {
    const absl::Status status = table->Check(name, token);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << name << " " << token;
    if (!token.empty()) {
      EXPECT_THAT(Describe(status), Not(HasSubstr(token)));
    }
  }
}

TEST(TokenTableTest, ATokenMayHaveAHashSign) {
  const auto table = Parse("w0 se#cret\nw1 secret# # the second\n");
  ASSERT_TRUE(table.ok()) << Describe(table.status());
  EXPECT_TRUE(table->Check("w0", "se#cret").ok());
  EXPECT_FALSE(table->Check("w0", "se").ok());
  EXPECT_TRUE(table->Check("w1", "secret#").ok());
}

TEST(TokenTableTest, WithdrawnTokensAreNamed) {
  const auto before = Parse("w0 a\nw1 b\nw2 c\n");
  const auto after = Parse("w3 d\nw2 c\nw1 changed\n");
  ASSERT_TRUE(before.ok() && after.ok());
  EXPECT_THAT(after->WithdrawnFrom(*before), ElementsAre("w0", "w1"));
  EXPECT_THAT(before->WithdrawnFrom(*before), IsEmpty());
}

TEST(TokenTableTest, BadLinesAreNamedWithoutQuotingTokens) {
  for (const char* text :
       {"w0 a\nw1\n", "w0 a\nw1 secret b\n", "w0 a\n-bad secret\n", "w0 a\nw0 secret\n",
        "w0 secret\nw1 secret\n", "w0 a\nw1 secret\x01\n", "w0 a\nw1 secret\xff\n"}) {
    const auto table = Parse(text);
    EXPECT_EQ(table.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(ExitCodeFor(table.status()), ExitCode::kBadInput);
    EXPECT_THAT(Describe(table.status()), AllOf(HasSubstr("tokens:2"), Not(HasSubstr("secret"))))
        << text;
  }
  EXPECT_EQ(Parse("# nobody\n").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace signvote::run
