#include "ctl/format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace signvote::ctl {
namespace {

TEST(FormatTest, UnitsFollowTheValue) {
  EXPECT_EQ(BytesText(0), "0 B");
  EXPECT_EQ(BytesText(999), "999 B");
  EXPECT_EQ(BytesText(107'804), "108 kB");
  EXPECT_EQ(BytesText(41'000'000), "41.0 MB");
  EXPECT_EQ(BytesText(NAN), "-");
  EXPECT_EQ(SecondsText(0), "0.00 ms");
  EXPECT_EQ(SecondsText(0.000351), "0.35 ms");
  EXPECT_EQ(SecondsText(0.0042), "4.2 ms");
  EXPECT_EQ(SecondsText(0.18), "180 ms");
  EXPECT_EQ(SecondsText(36.2), "36.2 s");
  EXPECT_EQ(SecondsText(125), "2 min 05 s");
  EXPECT_EQ(SecondsText(3725), "1 h 02 min");
  EXPECT_EQ(SecondsText(INFINITY), "-");
  EXPECT_EQ(Grouped(0), "0");
  EXPECT_EQ(Grouped(851968), "851,968");
  EXPECT_EQ(Grouped(1234567), "1,234,567");
}

TEST(FormatTest, ColumnsAreCodePointsAndNeverCutInHalf) {
  EXPECT_EQ(TextWidth("aä→█"), 4u);
  EXPECT_EQ(CutTo("aä→█", 4), "aä→█");
  EXPECT_EQ(CutTo("aä→█", 3), "aä…");
  EXPECT_EQ(CutTo("abcd", 3, "~"), "ab~");
  EXPECT_EQ(CutTo("abcd", 1), "…");
  EXPECT_EQ(CutTo("abcd", 0), "");
  EXPECT_EQ(Left("ä", 3), "ä  ");
  EXPECT_EQ(Left("abcd", 2), "a…");
  EXPECT_EQ(Right("→", 3), "  →");
  EXPECT_EQ(Right("abcd", 2), "abcd");
}

TEST(FormatTest, TextIsBrokenBetweenWordsIntoLinesThatFit) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(Wrapped("", 5), Lines{});
  EXPECT_EQ(Wrapped("ab cd", 5), Lines{"ab cd"});
  EXPECT_EQ(Wrapped("ab  cd e", 5), (Lines{"ab cd", "e"}));
  EXPECT_EQ(Wrapped("ä→ cd", 4), (Lines{"ä→", "cd"}));
  EXPECT_EQ(Wrapped("a bcdefg h", 4), (Lines{"a", "bcd…", "h"}));
}

}  // namespace
}  // namespace signvote::ctl
