#include "server/stop_budget.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

using std::chrono::minutes;
using std::chrono::seconds;

class StopBudgetTest : public ::testing::Test {
 protected:
  FakeClock clock_;
  bool requested_ = false;
  StopBudget budget_{&clock_, seconds(15), [this] { return requested_; }};
};

TEST_F(StopBudgetTest, WithoutAStopEachPartGetsWhatItWouldLike) {
  EXPECT_FALSE(budget_.Begun());
  clock_.Advance(minutes(10));
  EXPECT_EQ(budget_.Share(minutes(5), minutes(5)), Duration(minutes(5)));
}

// Whatever each would like, and however much of it each takes.
TEST_F(StopBudgetTest, AllPartsTogetherTakeOneTime) {
  clock_.Advance(minutes(1));
  requested_ = true;
  ASSERT_TRUE(budget_.Begun());
  const Time begin = clock_.Now();
  clock_.Advance(seconds(10));  // the open round
  const Duration sessions = budget_.Share(seconds(2), seconds(2));
  EXPECT_EQ(sessions, Duration(seconds(2)));
  clock_.Advance(sessions);
  const Duration applier = budget_.Share(Duration::max(), seconds(2));
  EXPECT_EQ(applier, Duration(seconds(1)));
  clock_.Advance(applier);
  const Duration copy = budget_.Share(seconds(5), seconds(1));
  EXPECT_EQ(copy, Duration(seconds(1)));
  clock_.Advance(copy);
  clock_.Advance(budget_.Share(seconds(3)));
  EXPECT_EQ(clock_.Now() - begin, Duration(seconds(15)));
  EXPECT_EQ(budget_.Share(seconds(1)), Duration::zero());
}

TEST_F(StopBudgetTest, WhatOnePartLeavesIsThereForTheNext) {
  requested_ = true;
  ASSERT_TRUE(budget_.Begun());
  EXPECT_EQ(budget_.Share(Duration::max(), seconds(2)), Duration(seconds(13)));
}

TEST_F(StopBudgetTest, APartThatOverdrawsCostsTheNextOneNothingBelowZero) {
  requested_ = true;
  ASSERT_TRUE(budget_.Begun());
  clock_.Advance(seconds(40));
  EXPECT_EQ(budget_.Share(seconds(1)), Duration::zero());
  EXPECT_EQ(budget_.Share(seconds(1), seconds(1)), Duration::zero());
}

TEST_F(StopBudgetTest, TheWritingIsNotCounted) {
  requested_ = true;
  ASSERT_TRUE(budget_.Begun());
  clock_.Advance(seconds(5));
  {
    const StopBudget::Pause writing(&budget_);
    clock_.Advance(minutes(2));
  }
  EXPECT_EQ(budget_.Share(Duration::max()), Duration(seconds(10)));
}

// A model that is held for lack of space, and then the stop.
TEST_F(StopBudgetTest, AStopDuringTheWritingHasItsWholeTimeWhenTheWritingIsOver) {
  {
    const StopBudget::Pause writing(&budget_);
    clock_.Advance(minutes(1));
    requested_ = true;
    clock_.Advance(minutes(1));
  }
  EXPECT_EQ(budget_.Share(Duration::max()), Duration(seconds(15)));
}

}  // namespace
}  // namespace signvote
