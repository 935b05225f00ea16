#include "server/round/arrivals.h"

#include <gtest/gtest.h>

#include <vector>

namespace signvote::round {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Paces = std::vector<Pace>;

TEST(ArrivalHistoryTest, HasNoMedianBeforeTheFirstValue) {
  EXPECT_FALSE(ArrivalHistory(16).Median().has_value());
  EXPECT_FALSE(ArrivalHistory(16).FirstMedian().has_value());
}

TEST(ArrivalHistoryTest, ForgetsAllButTheLastOnesAndKeepsTheFirstSixteen) {
  ArrivalHistory arrivals(16);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(arrivals.FirstMedian().has_value(), i >= 16);
    arrivals.Add(seconds(1000));
  }
  for (int i = 1; i <= 16; ++i) arrivals.Add(seconds(i));
  EXPECT_EQ(*arrivals.Median(), Duration(seconds(9)));  // the upper of 8 and 9
  EXPECT_EQ(*arrivals.FirstMedian(), Duration(seconds(1000)));
  EXPECT_EQ(arrivals.State().recent.size(), 16u);
  EXPECT_EQ(arrivals.State().recent.front(), Duration(seconds(1)));
}

TEST(ArrivalHistoryTest, OneOutlierDoesNotMoveIt) {
  ArrivalHistory arrivals(16);
  for (const int s : {1, 500, 1}) arrivals.Add(seconds(s));
  EXPECT_EQ(*arrivals.Median(), Duration(seconds(1)));
}

TEST(ArrivalHistoryTest, TheLastOneCanTurnOutLonger) {
  ArrivalHistory arrivals(3);
  arrivals.Add(seconds(1));
  arrivals.ReplaceLast(seconds(5));
  EXPECT_EQ(*arrivals.Median(), Duration(seconds(5)));
  EXPECT_EQ(arrivals.State().first, std::vector<Duration>{seconds(5)});
  for (int i = 0; i < 15; ++i) arrivals.Add(seconds(2));
  arrivals.Add(seconds(3));  // the seventeenth is none of the first
  arrivals.ReplaceLast(seconds(9));
  EXPECT_EQ(arrivals.State().first.back(), Duration(seconds(2)));
  EXPECT_EQ(arrivals.State().recent.back(), Duration(seconds(9)));
}

TEST(ArrivalHistoryTest, GoesOnFromItsState) {
  ArrivalHistory one(4);
  for (int i = 0; i < 20; ++i) one.Add(seconds(i));
  ArrivalHistory two(4, one.State());
  EXPECT_EQ(two.State(), one.State());
  EXPECT_EQ(two.Median(), one.Median());
  EXPECT_EQ(two.FirstMedian(), one.FirstMedian());
  ArrivalState large;
  large.recent.assign(10, seconds(1));
  large.recent.back() = seconds(7);
  large.first.assign(30, seconds(1));
  const ArrivalHistory cut(1, large);
  EXPECT_EQ(*cut.Median(), Duration(seconds(7)));
  EXPECT_EQ(cut.State().first.size(), ArrivalHistory::kFirstMax);
}

Duration Wait(const Paces& members, const Pace& overall) {
  return PlanWait(DeadlineConfig(), members, overall).wait;
}

TEST(PlanWaitTest, IsTheInitialOneWhileNothingHasArrived) {
  EXPECT_EQ(Wait({{}}, {}), DeadlineConfig().initial);
}

TEST(PlanWaitTest, IsTheSlowestMemberPlusTheGrace) {
  // grace: 1 × median in [0.5 s, 1.5 s]
  EXPECT_EQ(Wait({{seconds(1), {}}, {seconds(2), {}}}, {seconds(1), {}}), Duration(seconds(3)));
}

TEST(PlanWaitTest, TheGraceHasAFloorAndACeiling) {
  EXPECT_EQ(Wait({{milliseconds(10), {}}}, {milliseconds(10), {}}), Duration(milliseconds(510)));
  EXPECT_EQ(Wait({{seconds(4), {}}}, {seconds(4), {}}), Duration(milliseconds(5500)));
}

TEST(PlanWaitTest, LongRoundsRaiseTheCeilingToAQuarterOfTheMedian) {
  EXPECT_EQ(Wait({{seconds(40), {}}}, {seconds(40), {}}), Duration(seconds(50)));
}

TEST(PlanWaitTest, AMemberIsWaitedForUpToThreeMediansAndThenNamed) {
  const WaitPlan plan =
      PlanWait(DeadlineConfig(), Paces{{seconds(1), {}}, {seconds(100), {}}}, {seconds(1), {}});
  EXPECT_EQ(plan.wait, Duration(seconds(4)));
  EXPECT_TRUE(plan.outgrown.empty());  // that is no matter of growth
}

TEST(PlanWaitTest, AMemberWithoutHistoryIsTakenAsRegular) {
  EXPECT_EQ(Wait({{milliseconds(100), {}}, {}}, {seconds(1), {}}), Duration(seconds(2)));
}

TEST(PlanWaitTest, AMemberThatOutgrowsItsFirstRoundsIsWaitedForNoLonger) {
  const Paces members = {{seconds(20), seconds(2)}, {seconds(3), seconds(3)}};
  const WaitPlan plan = PlanWait(DeadlineConfig(), members, {seconds(20), {}});
  EXPECT_EQ(plan.wait, Duration(seconds(16)));
  EXPECT_EQ(plan.outgrown, std::vector<size_t>{0});
}

TEST(PlanWaitTest, AnotherMemberThatNeedsAsLongHidesTheLimit) {
  const Paces members = {{seconds(20), seconds(2)}, {seconds(20), seconds(20)}};
  const WaitPlan plan = PlanWait(DeadlineConfig(), members, {seconds(20), {}});
  EXPECT_EQ(plan.wait, Duration(seconds(25)));
  EXPECT_TRUE(plan.outgrown.empty());
}

TEST(PlanWaitTest, TheOverallMedianHasTheSameLimit) {
  // 16 s instead of 100 s: grace 4 s.
  EXPECT_EQ(Wait({{}}, {seconds(100), seconds(2)}), Duration(seconds(20)));
}

TEST(PlanWaitTest, ShortFirstRoundsCountAsTheShortestGrace) {
  const Paces members = {{seconds(20), milliseconds(1)}};
  EXPECT_EQ(Wait(members, {seconds(20), {}}), Duration(seconds(4)));
}

}  // namespace
}  // namespace signvote::round
