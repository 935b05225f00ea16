#include "common/local_steps.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

TEST(LocalStepsTest, InnerStepsizesGoFromTheFirstToTheLastInEqualSteps) {
  const LocalSteps local{.steps = 5, .eta_first = 0.5f, .eta_last = 0.25f};
  EXPECT_EQ(InnerStepsize(local, 0), 0.5f);
  EXPECT_EQ(InnerStepsize(local, 1), 0.4375f);
  EXPECT_EQ(InnerStepsize(local, 4), 0.25f);
  EXPECT_EQ(InnerStepsizeSum(local), 1.875);
}

TEST(LocalStepsTest, OneMinibatchIsTakenWithTheFirst) {
  const LocalSteps local{.steps = 1, .eta_first = 0.5f, .eta_last = 0.25f};
  EXPECT_EQ(InnerStepsize(local, 0), 0.5f);
  EXPECT_EQ(InnerStepsizeSum(local), 0.5);
}

TEST(LocalStepsTest, OnlyAReplicasSingleMinibatchIsAVoteAndOnlyTrialsAreSilent) {
  EXPECT_TRUE(LocalSteps{}.is_vote());
  EXPECT_FALSE(LocalSteps{}.is_silent());
  EXPECT_FALSE((LocalSteps{.steps = 16}.is_vote()));
  EXPECT_FALSE((LocalSteps{.steps = 16}.is_silent()));
  for (const StepsFrom from : {StepsFrom::kX0, StepsFrom::kContinue}) {
    const LocalSteps trial{.steps = 1, .from = from};
    EXPECT_FALSE(trial.is_vote());
    EXPECT_TRUE(trial.is_silent());
  }
}

}  // namespace
}  // namespace signvote
