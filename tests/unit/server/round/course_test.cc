#include "server/round/course.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "tests/unit/server/round/engine_fixture.h"

namespace signvote::round {
namespace {

class CourseTest : public testing::Test {
 protected:
  Course& course() {
    if (course_ == nullptr) Make({});
    return *course_;
  }
  void Make(const CourseState& state) {
    auto made = Course::Make(config_, std::make_unique<SpyRule>(&rule_), state);
    ASSERT_TRUE(made.ok()) << made.status();
    course_ = std::make_unique<Course>(*std::move(made));
  }
  CommitRound Decide(CourseEnd end = CourseEnd::kVerdict) {
    CommitRound commit;
    commit.round = round_;
    commit.chunks.resize(2);
    ++round_;
    absl::StatusOr<std::optional<Notice>> told = course().Decide(end, commit);
    EXPECT_TRUE(told.ok()) << told.status();
    told_ = told.ok() ? *std::move(told) : std::nullopt;
    return commit;
  }

  EngineConfig config_{.main_rounds_max = 3, .nonfinite_rounds = 3};
  SpyRule::Log rule_;
  std::unique_ptr<Course> course_;
  std::optional<Notice> told_;  // with the last decision
  Round round_;
};

TEST_F(CourseTest, AStepMovesTheMinibatchAndCountsAsAMainRound) {
  const CommitRound commit = Decide();
  EXPECT_EQ(commit.kind, CommitKind::kStep);
  EXPECT_EQ(commit.gamma, 0.5f);
  EXPECT_EQ(commit.rho, 1.0f);
  EXPECT_EQ(commit.data_step, DataStep(0));
  EXPECT_EQ(commit.next_data_step, DataStep(1));
  EXPECT_TRUE(commit.main_round);
  EXPECT_EQ(commit.main_rounds, 1u);
  EXPECT_EQ(commit.chunks.size(), 2u);
  EXPECT_EQ(commit.reason, "spy");
  ASSERT_EQ(commit.rule.state.size(), 1u);
  EXPECT_EQ(course().data_step(), DataStep(1));
  EXPECT_EQ(course().main_rounds(), 1u);
}

TEST_F(CourseTest, TheRunIsDoneAfterItsMainRounds) {
  EXPECT_FALSE(Decide().run_done);
  rule_.next.main_round = false;
  EXPECT_FALSE(Decide().run_done);
  rule_.next.main_round = true;
  EXPECT_FALSE(Decide().run_done);
  EXPECT_FALSE(course().run_done());
  EXPECT_TRUE(Decide().run_done);
  EXPECT_TRUE(course().run_done());
}

TEST_F(CourseTest, ARewindTakesNoMainRoundAndNoPayloadAndGoesWhereTheRuleWants) {
  Decide();
  rule_.next = {.kind = CommitKind::kRewind, .gamma = 0.25f, .next_data_step = DataStep(0)};
  const CommitRound commit = Decide();
  EXPECT_EQ(commit.kind, CommitKind::kRewind);
  EXPECT_EQ(commit.data_step, DataStep(1));
  EXPECT_EQ(commit.next_data_step, DataStep(0));
  EXPECT_FALSE(commit.main_round);
  EXPECT_EQ(commit.main_rounds, 1u);
  EXPECT_EQ(commit.rho, 1.0f);
  EXPECT_TRUE(commit.chunks.empty());
}

TEST_F(CourseTest, WithoutBallotsTheMinibatchGoesOnAndTheStepsizeStays) {
  Decide();
  const CommitRound commit = Decide(CourseEnd::kWithoutBallots);
  EXPECT_EQ(commit.kind, CommitKind::kNone);
  EXPECT_EQ(commit.gamma, 0.5f);
  EXPECT_EQ(commit.next_data_step, DataStep(2));
  EXPECT_FALSE(commit.main_round);
  EXPECT_TRUE(commit.chunks.empty());
  EXPECT_EQ(commit.reason, "no ballot");
  EXPECT_EQ(rule_.ahead.back().main_rounds, 1u);
  EXPECT_EQ(rule_.ahead.back().data_step, DataStep(1));
}

TEST_F(CourseTest, ARoundWithoutBallotsOfWhichTheRuleSaysNothingEndsNoRace) {
  rule_.next.race = {.trials = 2, .rounds = 7, .rounds_max = 20};
  EXPECT_EQ(Decide().rule.race, rule_.next.race);
  EXPECT_EQ(Decide(CourseEnd::kWithoutBallots).rule.race, rule_.next.race);
  rule_.next.race.over = true;
  EXPECT_TRUE(Decide().rule.race.over);
}

TEST_F(CourseTest, ARoundWithoutBallotsNeverRepeatsItsMinibatch) {
  rule_.without_ballot = StepsizeDecision{.kind = CommitKind::kNone, .next_data_step = DataStep(0)};
  EXPECT_EQ(Decide(CourseEnd::kNonFiniteLoss).next_data_step, DataStep(1));
  rule_.without_ballot->next_data_step = DataStep(7);
  EXPECT_EQ(Decide(CourseEnd::kNonFiniteLoss).next_data_step, DataStep(7));
}

TEST_F(CourseTest, X0IsOverOnlyWhereItWasNeeded) {
  EXPECT_FALSE(course().x0_over(round_));
  rule_.x0_over = true;
  EXPECT_TRUE(course().x0_over(round_));
  rule_.needs_x0 = false;
  EXPECT_FALSE(course().x0_over(round_));
}

TEST_F(CourseTest, ARuleMayRewindWithoutBallots) {
  Decide();
  rule_.without_ballot =
      StepsizeDecision{.kind = CommitKind::kRewind, .gamma = 0.1f, .next_data_step = DataStep(0)};
  const CommitRound commit = Decide(CourseEnd::kNonFiniteLoss);
  EXPECT_EQ(commit.kind, CommitKind::kRewind);
  EXPECT_EQ(commit.gamma, 0.1f);
  EXPECT_EQ(commit.next_data_step, DataStep(0));
}

// Goal: a rule that breaks its contract costs a run, not a server that aborts.
TEST_F(CourseTest, WhatNoCommitCanCarryOutIsRefusedWithTheRulesNameAndTheCourseStays) {
  constexpr CourseEnd kVerdict = CourseEnd::kVerdict;
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  struct Case {
    CourseEnd end;
    bool needs_x0;
    StepsizeDecision decision;
    const char* words;
    bool x0_over = false;
  };
  const Case cases[] = {
      {kVerdict, true, {.gamma = kInfinite}, "the stepsize inf"},
      {kVerdict, true, {.gamma = -1}, "the stepsize -1"},
      {kVerdict, true, {.gamma = 1, .rho = 0}, "rho 0"},
      {kVerdict, true, {.gamma = 1, .rho = kInfinite}, "rho inf"},
      {kVerdict, true, {.kind = CommitKind::kRewind, .rho = 0.5f}, "rho 0.5 and a rewind"},
      {kVerdict, false, {.kind = CommitKind::kRewind}, "without the starting parameters"},
      {kVerdict, true, {.kind = CommitKind::kRewind}, "without the starting parameters", true},
      {kVerdict, false, {.gamma = 1, .rho = 0.5f}, "without the starting parameters"},
      {CourseEnd::kWithoutBallots, true, {.gamma = 1}, "a step although there is no verdict"},
      {CourseEnd::kNonFiniteLoss, true, {.kind = CommitKind::kRewind, .rho = 2}, "rho 2"},
      {CourseEnd::kNonFiniteLoss, false, {.kind = CommitKind::kRewind}, "starting parameters"},
  };
  Decide();
  for (const Case& c : cases) {
    SCOPED_TRACE(c.words);
    rule_.needs_x0 = c.needs_x0;
    rule_.x0_over = c.x0_over;
    rule_.next = c.decision;
    rule_.without_ballot = c.decision;
    CommitRound commit;
    commit.round = Round(7);
    const absl::Status status = course().Decide(c.end, commit).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(status.message()),
                testing::AllOf(testing::HasSubstr("the stepsize rule 'spy' answers round 7"),
                               testing::HasSubstr(c.words)));
    EXPECT_EQ(course().data_step(), DataStep(1));
    EXPECT_EQ(course().main_rounds(), 1u);
  }
}

TEST_F(CourseTest, TheLastDecisionOfARuleThatGivesUpIsCommittedAndItsWordsStay) {
  Decide();
  EXPECT_TRUE(course().failure().ok());
  rule_.failure = absl::AbortedError("nothing lowers the loss; look at the data");
  rule_.next = {.kind = CommitKind::kRewind, .next_data_step = DataStep(0)};
  EXPECT_EQ(Decide().kind, CommitKind::kRewind);
  EXPECT_EQ(course().data_step(), DataStep(0));
  EXPECT_EQ(course().failure(), rule_.failure);
  const CourseState state = course().State();
  Make(state);
  EXPECT_EQ(course().failure(), rule_.failure) << "restored, it has still given up";
}

TEST_F(CourseTest, ARestoredRuleSaysHowFarItsTrialsAre) {
  Decide();
  rule_.race = {.trials = 2, .rounds = 7, .rounds_max = 20};
  const CourseState state = course().State();
  Make(state);
  EXPECT_EQ(course().race(), rule_.race);
  EXPECT_EQ(Decide(CourseEnd::kWithoutBallots).rule.race, rule_.race);
}

TEST_F(CourseTest, ARewindLeadsAwayFromWhereLossesAreNotFinite) {
  for (int i = 0; i < 2; ++i) Decide(CourseEnd::kNonFiniteLoss);
  rule_.without_ballot = StepsizeDecision{.kind = CommitKind::kRewind, .main_round = false};
  Decide(CourseEnd::kNonFiniteLoss);
  EXPECT_FALSE(course().diverged());
  rule_.without_ballot.reset();
  for (int i = 0; i < 3; ++i) Decide(CourseEnd::kNonFiniteLoss);
  EXPECT_TRUE(course().diverged());
}

TEST_F(CourseTest, ARuleSeesWhoseScalarsTheyAreAndWhyARoundHasNoVerdict) {
  config_.coordinates = 1234;
  CommitRound commit;
  commit.scalars.resize(2);
  commit.scalars_from = {{.worker = WorkerId(0), .share = Share(4)},
                         {.worker = WorkerId(1), .share = Share(2)}};
  ASSERT_TRUE(course().Decide(CourseEnd::kVerdict, commit).ok());
  EXPECT_THAT(rule_.shares, testing::ElementsAre(4, 2));
  EXPECT_EQ(rule_.coordinates, 1234u);
  EXPECT_FALSE(rule_.nonfinite);
  Decide(CourseEnd::kNonFiniteLoss);
  EXPECT_TRUE(rule_.nonfinite);
  Decide(CourseEnd::kWithoutBallots);
  EXPECT_FALSE(rule_.nonfinite);
  Decide(CourseEnd::kNonFiniteGradient);
  EXPECT_TRUE(rule_.nonfinite);
  Decide(CourseEnd::kWithoutBallots);
  EXPECT_FALSE(rule_.nonfinite);
}

TEST_F(CourseTest, DivergesAfterSoManyRoundsInARowWithoutAFiniteLoss) {
  for (int i = 0; i < 2; ++i) Decide(CourseEnd::kNonFiniteLoss);
  Decide(CourseEnd::kWithoutBallots);
  for (int i = 0; i < 2; ++i) Decide(CourseEnd::kNonFiniteLoss);
  Decide();
  for (int i = 0; i < 2; ++i) Decide(CourseEnd::kNonFiniteLoss);
  EXPECT_FALSE(course().diverged());
  EXPECT_EQ(course().BackOff(), Duration(0));
  Decide(CourseEnd::kNonFiniteLoss);
  EXPECT_TRUE(course().diverged());
}

TEST_F(CourseTest, TheBackOffDoublesAndIsForgottenByAVerdictOrANonFiniteLoss) {
  EXPECT_EQ(course().BackOff(), Duration(0));
  for (const int s : {1, 2, 4, 8, 16, 30, 30, 30}) {
    Decide(CourseEnd::kWithoutBallots);
    EXPECT_EQ(course().BackOff(), Duration(std::chrono::seconds(s)));
  }
  Decide(CourseEnd::kNonFiniteLoss);
  EXPECT_EQ(course().BackOff(), Duration(0));
  Decide(CourseEnd::kWithoutBallots);
  Decide();
  EXPECT_EQ(course().BackOff(), Duration(0));
}

TEST_F(CourseTest, TheRuleSeesTheRunAsItStands) {
  config_.x0_max_abs = 3;
  Decide();
  Decide();
  EXPECT_EQ(rule_.gammas, (std::vector<float>{0, 0.5f}));
  EXPECT_EQ(rule_.ahead[1].round, Round(1));
  EXPECT_EQ(rule_.ahead[1].data_step, DataStep(1));
  EXPECT_EQ(rule_.ahead[1].main_rounds, 1u);
  EXPECT_TRUE(course().Wanted(Round(2)).empty());
}

TEST_F(CourseTest, AWarningIsToldOnceAndStaysInEveryCommitUntilItEnds) {
  config_.main_rounds_max = 100;
  EXPECT_EQ(Decide().rule.warning, "");
  EXPECT_FALSE(told_.has_value());
  rule_.next.warning = "no probe; do this";
  EXPECT_EQ(Decide().rule.warning, "no probe; do this");
  ASSERT_TRUE(told_.has_value());
  EXPECT_EQ(told_->level, NoticeLevel::kWarning);
  EXPECT_EQ(told_->text, "no probe; do this");
  // A round without a verdict shows the rule nothing.
  for (const CourseEnd end : {CourseEnd::kVerdict, CourseEnd::kWithoutBallots,
                              CourseEnd::kNonFiniteLoss, CourseEnd::kVerdict}) {
    EXPECT_EQ(Decide(end).rule.warning, "no probe; do this");
    EXPECT_FALSE(told_.has_value());
  }
  rule_.next.warning = "another";
  Decide();
  ASSERT_TRUE(told_.has_value());
  EXPECT_EQ(told_->text, "another");
  rule_.next.warning.clear();
  EXPECT_EQ(Decide().rule.warning, "");
  ASSERT_TRUE(told_.has_value());
  EXPECT_EQ(told_->level, NoticeLevel::kInfo);
  Decide();
  EXPECT_FALSE(told_.has_value());
}

TEST_F(CourseTest, GoesOnFromItsState) {
  Decide();
  Decide(CourseEnd::kWithoutBallots);
  const CourseState state = course().State();
  EXPECT_EQ(state.rule, "spy2");
  Make(state);
  EXPECT_EQ(course().State(), state);
  EXPECT_EQ(course().BackOff(), Duration(std::chrono::seconds(1)));
  EXPECT_EQ(Decide().rule.state[0].second, 3.0);
}

}  // namespace
}  // namespace signvote::round
