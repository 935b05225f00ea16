// Who is asked for the run's held-out loss, and what becomes of an answer: no socket, no thread.

#include <gtest/gtest.h>

#include "tests/unit/server/run/run_fixture.h"

namespace signvote::run {
namespace {

constexpr uint64_t kWindows = 0xabc;

class RunEvaluationTest : public RunTest {
 protected:
  void Start(uint32_t workers_min) {
    RunOptions options = Options();
    options.workers_min = workers_min;
    options.evaluate_every = 4;
    StartRun(std::move(options));
  }
  // One round of these: which of them was asked, by index.
  std::optional<size_t> RoundOf(const std::vector<TestWorker*>& workers) {
    ReadAll();
    std::optional<size_t> asked;
    for (size_t i = 0; i < workers.size(); ++i) {
      SIGNVOTE_CHECK(workers[i]->open.has_value());
      if (!workers[i]->open->evaluate()) continue;
      EXPECT_FALSE(asked.has_value()) << "two are asked";
      asked = i;
    }
    for (TestWorker* worker : workers) worker->Vote(RandomBits(kCoordinates, 1));
    ReadAll();
    return asked;
  }
  StatusPage Page() { return run_->Snapshot(clock_.Now()); }
};

TEST_F(RunEvaluationTest, OneThatCanIsAskedAndWhatItMeasuresIsTheRuns) {
  Start(2);
  TestWorker& a = Joined("a");
  EXPECT_EQ(a.welcome->evaluate_every(), 4u);
  EXPECT_EQ(Page().evaluator, "") << "no round is open";
  TestWorker& b = Joined("b", kWindows);
  EXPECT_EQ(RoundOf({&a, &b}), 1u);
  EXPECT_EQ(Page().evaluator, "b");
  EXPECT_EQ(RoundOf({&a, &b}), std::nullopt);
  EXPECT_EQ(RoundOf({&a, &b}), std::nullopt);
  EXPECT_FALSE(Page().held_out.has_value());
  b.measured = {.loss = 2.5, .error = 0.125, .round = Round(0), .windows = kWindows};
  EXPECT_EQ(RoundOf({&a, &b}), std::nullopt);
  const StatusPage page = Page();
  ASSERT_TRUE(page.held_out.has_value());
  EXPECT_EQ(page.held_out->loss, 2.5);
  EXPECT_EQ(page.held_out->error, 0.125);
  EXPECT_EQ(page.held_out->round, Round(0));
  EXPECT_EQ(page.held_out->windows, kWindows);
  EXPECT_EQ(page.held_out->worker, "b");
  EXPECT_FALSE(page.held_out->own);
  EXPECT_EQ(RoundOf({&a, &b}), 1u) << "the next period";
}

TEST_F(RunEvaluationTest, AnotherTakesOverInTheRoundAfterTheOneThatMeasuresIsGone) {
  Start(2);
  TestWorker& a = Joined("a", kWindows);
  TestWorker& b = Joined("b", kWindows);
  EXPECT_EQ(RoundOf({&a, &b}), 0u);
  a.Break();
  EXPECT_EQ(Page().evaluator, "");
  EXPECT_EQ(RoundOf({&b}), std::nullopt) << "that round was open already";
  EXPECT_EQ(RoundOf({&b}), 0u);
  EXPECT_EQ(Page().evaluator, "b");
  b.measured = {.loss = 2.5, .round = Round(2), .windows = kWindows};
  EXPECT_EQ(RoundOf({&b}), std::nullopt);
  EXPECT_EQ(Page().held_out->worker, "b");
}

TEST_F(RunEvaluationTest, ARoundThatIsOpenedAgainAsksTheSameOne) {
  Start(2);
  TestWorker& a = Joined("a", kWindows);
  TestWorker& b = Joined("b", kWindows);
  ReadAll();
  for (TestWorker* worker : {&a, &b}) worker->Abstain(AbstainReason::kOther);
  ReadAll();
  ASSERT_TRUE(a.open.has_value() && b.open.has_value());
  ASSERT_EQ(a.open->attempt(), 1u);
  EXPECT_TRUE(a.open->evaluate());
  EXPECT_FALSE(b.open->evaluate());
}

TEST_F(RunEvaluationTest, OneThatIsBehindIsNotAskedWhileAnotherCanBe) {
  Start(2);
  TestWorker& a = Joined("a", kWindows);
  TestWorker& b = Joined("b", kWindows);
  EXPECT_EQ(RoundOf({&a, &b}), 0u);
  a.peer->network_takes = false;
  a.peer->queued = size_t{1} << 40;
  a.Vote(RandomBits(kCoordinates, 1));
  b.Vote(RandomBits(kCoordinates, 1));
  b.ReadAll();
  ASSERT_TRUE(b.open.has_value());
  EXPECT_EQ(b.open->round(), 2u);
  EXPECT_TRUE(b.open->evaluate());
}

TEST_F(RunEvaluationTest, WhatNobodyAskedForIsTheWorkersOwn) {
  Start(2);
  TestWorker& a = Joined("a", kWindows);
  TestWorker& b = Joined("b", kWindows);
  EXPECT_EQ(RoundOf({&a, &b}), 0u);
  b.measured = {.loss = 2, .round = Round(0), .windows = kWindows};
  EXPECT_EQ(RoundOf({&a, &b}), std::nullopt);
  const StatusPage page = Page();
  EXPECT_FALSE(page.held_out.has_value());
  ASSERT_TRUE(page.workers[1].held_out.has_value());
  EXPECT_TRUE(page.workers[1].held_out->own);
  EXPECT_EQ(page.workers[1].held_out->loss, 2);
}

TEST_F(RunEvaluationTest, WhatCannotBeTrueIsLeftOutAndEndsNothing) {
  Start(1);
  TestWorker& a = Joined("a", kWindows);
  EXPECT_EQ(RoundOf({&a}), 0u);
  a.measured = {.loss = 2, .round = Round(0), .windows = kWindows + 1};
  EXPECT_EQ(RoundOf({&a}), std::nullopt);
  a.measured = {.loss = 2, .round = Round(3), .windows = kWindows};  // 2 are committed
  EXPECT_EQ(RoundOf({&a}), std::nullopt);
  EXPECT_FALSE(Page().held_out.has_value());
  EXPECT_FALSE(Page().workers[0].held_out.has_value());
  EXPECT_FALSE(a.closed());
}

TEST_F(RunEvaluationTest, NobodyIsAskedWhereNobodyCan) {
  Start(1);
  TestWorker& a = Joined("a");
  for (int round = 0; round < 6; ++round) EXPECT_EQ(RoundOf({&a}), std::nullopt);
  EXPECT_EQ(Page().evaluator, "");
}

}  // namespace
}  // namespace signvote::run
