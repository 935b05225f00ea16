#include "server/round/recent_openings.h"

#include <gtest/gtest.h>

namespace signvote::round {
namespace {

TEST(RecentOpeningsTest, KnowsTheLastEightRounds) {
  RecentOpenings openings;
  EXPECT_FALSE(openings.Find(Round(0)).has_value());
  for (int64_t r = 0; r < 20; ++r) openings.Add(Round(static_cast<uint64_t>(r)), Time{r});
  EXPECT_EQ(openings.Find(Round(12)), Time{12});
  EXPECT_EQ(openings.Find(Round(19)), Time{19});
  EXPECT_FALSE(openings.Find(Round(11)).has_value());
  EXPECT_FALSE(openings.Find(Round(20)).has_value());
}

TEST(RecentOpeningsTest, ARoundThatOpenedAgainIsNotKnown) {
  RecentOpenings openings;
  openings.Add(Round(3), Time{3});
  openings.Add(Round(4), Time{4});
  openings.Drop(Round(3));
  EXPECT_FALSE(openings.Find(Round(3)).has_value());
  EXPECT_EQ(openings.Find(Round(4)), Time{4});
}

}  // namespace
}  // namespace signvote::round
