// What holds rounds back without being any worker's doing, and what workers make the log say.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "server/round/engine.h"
#include "tests/unit/server/round/engine_fixture.h"

namespace signvote::round {
namespace {

using testing::HasSubstr;

class EngineHoldsTest : public EngineTest {
 protected:
  // The only worker abstains until the round closes without a step.
  Actions RoundWithoutStep() {
    Actions all = Abstain(0, AbstainReason::kOther);
    const Actions more = Abstain(0, AbstainReason::kOther);  // of the attempt that was reopened
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

TEST_F(EngineHoldsTest, APauseIsNoTimeWithoutAStep) {
  Start(1);
  ASSERT_EQ(One<CommitRound>(RoundWithoutStep()).kind, CommitKind::kNone);
  ASSERT_EQ(View().phase, Phase::kBackingOff);
  Do(PauseRequested{});
  EXPECT_FALSE(Has<EndRun>(DoAfter(2 * config_.wait_timeout, ResumeRequested{})));
  ASSERT_EQ(View().phase, Phase::kRoundOpen);
  // The time before and after the pause is one.
  Actions all;
  while (!Has<EndRun>(all)) {
    ASSERT_LT(now_, Time{1000} + 4 * config_.wait_timeout);
    all = View().phase == Phase::kRoundOpen ? RoundWithoutStep() : Sleep();
  }
  EXPECT_THAT(Describe(One<EndRun>(all).status), HasSubstr("no step for"));
  EXPECT_GE(now_, Time{1000} + 3 * config_.wait_timeout);
  EXPECT_LT(now_, Time{1000} + 3 * config_.wait_timeout + Duration(std::chrono::minutes(1)));
}

TEST_F(EngineHoldsTest, WaitingForTheApplierIsNoTimeWithoutAStep) {
  Start(1);
  Do(ProposalRoom{false});
  RoundWithoutStep();
  Sleep();
  ASSERT_EQ(View().phase, Phase::kWaitingForRoom);
  // A pause meanwhile is part of it.
  DoAfter(config_.wait_timeout, PauseRequested{});
  DoAfter(config_.wait_timeout, ProposalRoom{true});
  EXPECT_FALSE(Has<EndRun>(DoAfter(config_.wait_timeout, ResumeRequested{})));
  EXPECT_EQ(View().phase, Phase::kRoundOpen);
}

// Whoever writes the lines limits those that a worker can cause without end.
TEST_F(EngineHoldsTest, NoticesThatAWorkerCanRepeatSayWhoseDoingTheyAre) {
  config_.observer_after = 1;
  config_.digest_every = 1;
  Start(2);
  const auto all_of = [](const Actions& actions, uint32_t w) {
    const std::vector<Notice> notices = All<Notice>(actions);
    EXPECT_FALSE(notices.empty());
    for (const Notice& notice : notices) EXPECT_EQ(notice.of, Id(w)) << notice.text;
  };
  all_of(Abstain(1), 1);
  all_of(Vote(0), 1);  // w1 is an observer from now on
  Vote(1);
  all_of(Vote(0), 1);  // and a member again
  WorkerScalars bad = SomeScalars();
  bad.loss = std::numeric_limits<double>::quiet_NaN();
  Vote(0);
  all_of(Scalars(1, bad), 1);
  Do(MasterDigestIn{Round(1), 6});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 6});
  all_of(Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 5}), 1);
  all_of(Lost(1), 1);
  Ready(1);
  all_of(Vote(0), 1);  // w1 joins
  all_of(Do(WorkerLeaves{Id(1), Inc(1)}), 1);
}

}  // namespace
}  // namespace signvote::round
