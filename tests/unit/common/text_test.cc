#include "common/text.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

TEST(WithoutMark, OneWholeMarkAtTheBeginningGoes) {
  EXPECT_EQ(WithoutMark("\xef\xbb\xbf"
                        "a"),
            "a");
  EXPECT_EQ(WithoutMark("\xef\xbb\xbf\xef\xbb\xbf"), "\xef\xbb\xbf");
  for (const char* text : {"", "a", "a\xef\xbb\xbf", "\xef\xbb",
                           "\xef\xbb"
                           "a"})
    EXPECT_EQ(WithoutMark(text), text);
}

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

TEST(ForPeople, WhatSteersTerminalsOrTurnsTextAroundBecomesASpace) {
  EXPECT_EQ(ForPeople("a\xC2\x9B"
                      "31mb",
                      100),
            "a 31mb");                                         // CSI as one character
  EXPECT_EQ(ForPeople("exe\xE2\x80\xAEgpj", 100), "exe gpj");  // override
  EXPECT_EQ(ForPeople("a\xE2\x81\xA6z", 100), "a z");          // isolate
  EXPECT_EQ(ForPeople("a\xE2\x80\xA8z", 100), "a z");          // line separator
  EXPECT_EQ(ForPeople("a\xC2\xA0z", 100), "a\xC2\xA0z");       // a space is no control
}

TEST(ForPeople, WhatIsNotUtf8BecomesAQuestionMark) {
  EXPECT_EQ(ForPeople("a\x9Bz", 100), "a?z");
  EXPECT_EQ(ForPeople("\xC0\x80", 100), "??");            // overlong
  EXPECT_EQ(ForPeople("\xED\xA0\x80", 100), "???");       // surrogate
  EXPECT_EQ(ForPeople("\xF4\x90\x80\x80", 100), "????");  // beyond Unicode
  EXPECT_EQ(ForPeople("\xE2\x82", 100), "??");            // truncated
  EXPECT_EQ(ForPeople("\xF0\x9F\x98\x80", 4), "\xF0\x9F\x98\x80");
}

}  // namespace
}  // namespace signvote
