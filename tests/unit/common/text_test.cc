#include "common/text.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

TEST(ForPeople, TextIsCutAtTheStartOfACodePoint) {
  EXPECT_EQ(ForPeople("abc", 3), "abc");
  EXPECT_EQ(ForPeople("abcd", 3), "abc");
  EXPECT_EQ(ForPeople("aé", 2), "a");
  EXPECT_EQ(ForPeople("aé", 3), "aé");
  EXPECT_EQ(ForPeople("€€", 5), "€");
  EXPECT_EQ(ForPeople("€", 2), "");
  EXPECT_EQ(ForPeople("", 0), "");
}

TEST(ForPeople, ControlCharactersBecomeSpaces) {
  EXPECT_EQ(ForPeople("a\nb\x1b[2Jc\x7f", 100), "a b [2Jc ");
}

}  // namespace
}  // namespace signvote
