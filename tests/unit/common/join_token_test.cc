#include "common/join_token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// The token that the server's file gives to `w`, whose line ends with `text`; "": refused.
std::string AtServer(const std::string& text) {
  const auto table = ParseNamedTokens("tokens", "w " + text);
  return table.ok() && table->size() == 1 ? (*table)[0].token : "";
}

std::string AtWorker(const std::string& text) { return ParseOwnToken("token", text).value_or(""); }

// Goal: nobody is refused because two readers of one token see two.
TEST(JoinTokenTest, ServerAndWorkerReadTheSameTokenOrBothRefuse) {
  const std::pair<std::string, const char*> cases[] = {
      {"secret\n", "secret"},
      {"secret", "secret"},
      {"se#cret\n", "se#cret"},
      {"secret#\n", "secret#"},
      {"a#b#c # of the second room\n", "a#b#c"},
      {"secret\t#comment\n", "secret"},
      {"secret\r\n", "secret"},
      {"#secret\n", ""},
      {"secret other\n", ""},
      {"se\x01"
       "cret\n",
       ""},
      {"secr\xc3\xa9t\n", ""},
      {std::string(kJoinTokenBytesMax, 'x') + "\n", nullptr},
      {std::string(kJoinTokenBytesMax + 1, 'x') + "\n", ""},
  };
  for (const auto& [text, token] : cases) {
    const std::string expected = token != nullptr ? token : text.substr(0, text.size() - 1);
    EXPECT_EQ(AtServer(text), expected) << text;
    EXPECT_EQ(AtWorker(text), expected) << text;
  }
}

TEST(JoinTokenTest, AByteOrderMarkIsNoPartOfANameOrAToken) {
  const auto table = ParseNamedTokens("tokens", "\xef\xbb\xbfw0 a\r\nw1 b\r\n");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ((*table)[0].name, "w0");
  EXPECT_EQ((*table)[1].token, "b");
  EXPECT_EQ(AtWorker("\xef\xbb\xbfsecret\n"), "secret");
}

TEST(JoinTokenTest, CommentsAndBlankLinesStandAnywhereBetweenWords) {
  const auto table = ParseNamedTokens("tokens", "# workers\n\n  w0  a\n\t# w1 b\nw2\tc #\n");
  ASSERT_TRUE(table.ok()) << table.status();
  ASSERT_EQ(table->size(), 2u);
  EXPECT_EQ((*table)[1].name, "w2");
  EXPECT_TRUE(ParseNamedTokens("tokens", "# nobody\n")->empty());
  EXPECT_EQ(AtWorker("# of w0\n\nsecret\n"), "secret");
}

TEST(JoinTokenTest, WhatIsWrongIsNamedWithoutQuotingAToken) {
  for (const char* text :
       {"w0 a\nw1\n", "w0 a\nw1 secret b\n", "w0 a\n-bad secret\n", "w0 a\nw0 secret\n",
        "w0 secret\nw1 secret\n", "w0 a\nw1 secret\x01\n"}) {
    const absl::Status status = ParseNamedTokens("the/tokens", text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
    EXPECT_THAT(Describe(status), HasSubstr("the/tokens:2: "));
    EXPECT_THAT(Describe(status), Not(HasSubstr("secret")));
  }
  for (const char* text :
       {"", "\n", "# secret\n", "secret b\n", "secret\nsecret\n", "secret\x7f\n"}) {
    const absl::Status status = ParseOwnToken("the/token", text).status();
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput) << text;
    EXPECT_THAT(Describe(status), HasSubstr("the/token "));
    EXPECT_THAT(Describe(status), Not(HasSubstr("secret")));
  }
}

}  // namespace
}  // namespace signvote
