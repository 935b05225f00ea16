#include "server/round/arrivals.h"

#include <gtest/gtest.h>

#include <vector>

namespace signvote::round {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Medians = std::vector<std::optional<Duration>>;

TEST(RecentMedianTest, HasNoMedianBeforeTheFirstValue) {
  EXPECT_FALSE(WorkerArrivals().Median().has_value());
}

TEST(RecentMedianTest, ForgetsAllButTheLastSixteen) {
  WorkerArrivals arrivals;
  for (int i = 0; i < 100; ++i) arrivals.Add(seconds(1000));
  for (int i = 1; i <= 16; ++i) arrivals.Add(seconds(i));
  EXPECT_EQ(*arrivals.Median(), Duration(seconds(9)));
}

TEST(RecentMedianTest, OneOutlierDoesNotMoveIt) {
  WorkerArrivals arrivals;
  for (const int s : {1, 500, 1}) arrivals.Add(seconds(s));
  EXPECT_EQ(*arrivals.Median(), Duration(seconds(1)));
}

TEST(AttemptWaitTest, IsTheInitialOneWhileNothingHasArrived) {
  DeadlineConfig config;
  EXPECT_EQ(AttemptWait(config, Medians{std::nullopt}, std::nullopt), config.initial);
}

TEST(AttemptWaitTest, IsTheSlowestMemberPlusTheGrace) {
  DeadlineConfig config;  // grace: 1 × median in [0.5 s, 1.5 s]
  EXPECT_EQ(AttemptWait(config, Medians{seconds(1), seconds(2)}, seconds(1)), Duration(seconds(3)));
}

TEST(AttemptWaitTest, TheGraceHasAFloorAndACeiling) {
  DeadlineConfig config;
  EXPECT_EQ(AttemptWait(config, Medians{milliseconds(10)}, milliseconds(10)),
            Duration(milliseconds(510)));
  EXPECT_EQ(AttemptWait(config, Medians{seconds(4)}, seconds(4)), Duration(milliseconds(5500)));
}

TEST(AttemptWaitTest, LongRoundsRaiseTheCeilingToAQuarterOfTheMedian) {
  EXPECT_EQ(AttemptWait(DeadlineConfig(), Medians{seconds(40)}, seconds(40)),
            Duration(seconds(50)));
}

TEST(AttemptWaitTest, AMemberIsWaitedForUpToThreeMedians) {
  EXPECT_EQ(AttemptWait(DeadlineConfig(), Medians{seconds(1), seconds(100)}, seconds(1)),
            Duration(seconds(4)));
}

TEST(AttemptWaitTest, AMemberWithoutHistoryIsTakenAsRegular) {
  EXPECT_EQ(AttemptWait(DeadlineConfig(), Medians{milliseconds(100), std::nullopt}, seconds(1)),
            Duration(seconds(2)));
}

}  // namespace
}  // namespace signvote::round
