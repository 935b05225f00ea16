#include "server/stepsize/alias_curvature.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "server/stepsize/alias.h"
#include "tests/unit/server/stepsize/toy_run.h"

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// The wanted values of each worker, in order of `asked`.
std::optional<double> Measure(AliasCurvature& curvature, const std::vector<ScalarKind>& asked,
                              const std::vector<std::vector<double>>& wanted, uint64_t t,
                              double scale = 1, uint64_t coordinates = 100,
                              uint64_t rounds_before = 0) {
  std::vector<WorkerScalars> workers;
  for (const std::vector<double>& values : wanted) workers.push_back({.loss = 1, .wanted = values});
  const RuleInput input{.ahead = {.round = Round(rounds_before + t), .main_rounds = t},
                        .step_scale_max = scale,
                        .coordinates = coordinates,
                        .asked = asked,
                        .workers = workers};
  if (t == 0) {
    curvature.Begin(input);
    return std::nullopt;
  }
  return curvature.Measure(input, 0.25f);
}

TEST(AliasCurvatureTest, TheSameMinibatchsChangeIsDividedByTheLargestMove) {
  AliasCurvature curvature({});
  EXPECT_TRUE(curvature.needs_h());
  EXPECT_THAT(curvature.Wanted(), ElementsAre(ScalarKind::kProbeL1));
  const std::vector asked = {ScalarKind::kProbeL1};
  EXPECT_EQ(*Measure(curvature, asked, {{3}, {5}}, 1, 2), 4 / (0.25 * 2));
  EXPECT_EQ(*Measure(curvature, asked, {{kNan}, {5}}, 2), 20);
  EXPECT_FALSE(Measure(curvature, asked, {{kNan}, {}}, 3).has_value());
  EXPECT_FALSE(Measure(curvature, asked, {{-1}}, 4).has_value());
}

TEST(AliasCurvatureTest, ThePreviousGradientNeedsNoSecondOne) {
  AliasCurvature curvature({.form = AliasForm::kPrevious});
  EXPECT_FALSE(curvature.needs_h());
  EXPECT_THAT(curvature.Wanted(), ElementsAre(ScalarKind::kChangeL1));
  EXPECT_EQ(*Measure(curvature, {ScalarKind::kChangeL1}, {{3}, {5}}, 1), 16);
}

TEST(AliasCurvatureTest, AlongTheVerdictTheMeanIsTakenBeforeThePositivePart) {
  AliasCurvature curvature({.form = AliasForm::kDirectional});
  EXPECT_TRUE(curvature.needs_h());
  EXPECT_THAT(curvature.Wanted(), ElementsAre(ScalarKind::kProbeInner));
  const std::vector asked = {ScalarKind::kPrevInner, ScalarKind::kProbeInner};
  // ⟨h − g, b⟩ is 3 and −1: exactly linear over the workers.
  EXPECT_EQ(*Measure(curvature, asked, {{1, 4}, {2, 1}}, 1), 1 / 0.25);
  EXPECT_EQ(*Measure(curvature, asked, {{1, 4}, {2, 1}}, 2, 2), 1 / (0.25 * 4));
  EXPECT_EQ(*Measure(curvature, asked, {{4, 1}}, 3), 0);
  EXPECT_FALSE(Measure(curvature, asked, {{4, kNan}, {kNan, 4}, {4}}, 4).has_value());
}

TEST(AliasCurvatureTest, TheExtremaArePairedWithThoseOfTheSameShareInTheRoundBefore) {
  AliasCurvature curvature({.form = AliasForm::kExtrema, .extrema_scale = 3});
  EXPECT_FALSE(curvature.needs_h());
  EXPECT_THAT(curvature.Wanted(), ElementsAre(ScalarKind::kGradientMax, ScalarKind::kGradientMin));
  const std::vector<ScalarKind> asked = curvature.Wanted();
  Measure(curvature, asked, {{5, -1}, {2, -2}}, 0);
  // max(|4 − (−1)|, |5 − (−3)|) = 8; max(|2 + 2|, |2 + 6|) = 8.
  EXPECT_EQ(*Measure(curvature, asked, {{4, -3}, {2, -6}}, 1, 1, 100), 3 * 8 / (100 * 0.25));
  // The second is away, and has nothing to be compared with when it is back.
  EXPECT_EQ(*Measure(curvature, asked, {{4, -3}}, 2), 3 * 7 / (100 * 0.25));
  EXPECT_EQ(*Measure(curvature, asked, {{0, 0}, {9, -9}}, 3), 3 * 4 / (100 * 0.25));
  EXPECT_EQ(*Measure(curvature, asked, {{kNan, kNan}, {9, -9}}, 4), 3 * 18 / (100 * 0.25));
  EXPECT_FALSE(Measure(curvature, asked, {{1, 0}}, 5).has_value());
  // A round without a verdict lies between.
  EXPECT_FALSE(Measure(curvature, asked, {{1, 0}}, 7).has_value());
}

TEST(AliasCurvatureTest, WorkersTakeTurnsAndEachProbesInEveryKthRound) {
  AliasCurvature curvature({.probe_every = 3});
  std::vector<std::vector<uint64_t>> rounds(4);
  for (uint64_t t = 1; t <= 9; ++t) {
    for (uint32_t share = 0; share < 4; ++share) {
      if (curvature.AskedForH(t, Share(share))) rounds[share].push_back(t);
    }
  }
  EXPECT_THAT(rounds[0], ElementsAre(1, 4, 7));
  EXPECT_THAT(rounds[1], ElementsAre(2, 5, 8));
  EXPECT_THAT(rounds[2], ElementsAre(3, 6, 9));
  EXPECT_EQ(rounds[3], rounds[0]);
}

TEST(AliasCurvatureTest, TheMeanIsOverTheLastKRoundsAndALiarWhoseTurnItIsDoesNotMoveIt) {
  AliasCurvature curvature({.probe_every = 5});
  const std::vector asked = {ScalarKind::kProbeL1};
  const auto round = [&](uint64_t t, double lie) {
    std::vector<std::vector<double>> wanted;
    for (uint32_t share = 0; share < 5; ++share)
      wanted.push_back({share == 2 ? lie : 1.0 + 0.1 * share});
    return Measure(curvature, asked, wanted, t);
  };
  EXPECT_EQ(*round(1, 1.2), 4);           // share 0 alone
  EXPECT_DOUBLE_EQ(*round(2, 1.2), 4.2);  // 0 and 1
  for (uint64_t t = 3; t <= 5; ++t) (void)round(t, 1.2);
  EXPECT_NEAR(*round(6, 1.2), 4.8, 1e-12);
  for (uint64_t t = 7; t <= 20; ++t) EXPECT_NEAR(*round(t, 1e200), 4.8, 0.8) << t;
}

TEST(AliasCurvatureTest, RoundsWithoutAStepForgetNobodysTurn) {
  AliasCurvature curvature({.probe_every = 4});
  const std::vector asked = {ScalarKind::kProbeL1};
  EXPECT_EQ(*Measure(curvature, asked, {{1}, {2}}, 1), 4);
  // Four rounds closed without a verdict, and it is the next one's turn.
  EXPECT_EQ(*Measure(curvature, asked, {{1}, {2}}, 2, 1, 100, 4), 6);
}

TEST(AliasCurvatureTest, ARoundInWhichNobodyTellsAnythingNewHasNone) {
  AliasCurvature curvature({.probe_every = 3});
  const std::vector asked = {ScalarKind::kProbeL1};
  EXPECT_TRUE(Measure(curvature, asked, {{1}}, 1).has_value());
  EXPECT_FALSE(Measure(curvature, asked, {{1}}, 2).has_value());  // nobody's turn
  EXPECT_FALSE(Measure(curvature, asked, {{1}}, 3).has_value());
  EXPECT_FALSE(Measure(curvature, asked, {{kNan}}, 4).has_value());
  EXPECT_EQ(*Measure(curvature, asked, {{2}}, 7), 8);  // the old one is forgotten
}

TEST(AliasCurvatureTest, WhatIsSavedIsRestoredAndNonsenseIsNot) {
  const AliasCurvatureConfig turns{.probe_every = 4}, extrema{.form = AliasForm::kExtrema};
  for (const AliasCurvatureConfig& config : {turns, extrema}) {
    AliasCurvature one(config), two(config);
    const std::vector<ScalarKind> asked = one.Wanted();
    for (uint64_t t = 0; t < 9; ++t) {
      RuleStateWriter writer("r", 1);
      one.Save(writer);
      const std::string bytes = writer.Take();
      RuleStateReader reader(bytes, "r", 1);
      AliasCurvature restored(config);
      ASSERT_TRUE(restored.Restore(reader).ok());
      ASSERT_TRUE(reader.Finish().ok());
      one = restored;
      const double x = static_cast<double>(t);
      const std::vector<std::vector<double>> wanted = {{x, 1 - x}, {2 * x, -x}, {3, -3}};
      EXPECT_EQ(Measure(one, asked, wanted, t), Measure(two, asked, wanted, t));
    }
  }
  const auto restore = [](const AliasCurvatureConfig& config, uint64_t share, double value) {
    RuleStateWriter out("r", 1);
    out.Add(uint64_t{2});
    for (const uint64_t of : {uint64_t{7}, share}) {
      out.Add(of);
      out.Add(uint64_t{3});
      out.Add(value);
      out.Add(0.0);
    }
    const std::string bytes = out.Take();
    RuleStateReader in(bytes, "r", 1);
    return AliasCurvature(config).Restore(in).code();
  };
  EXPECT_EQ(restore(turns, 8, 1), absl::StatusCode::kOk);
  EXPECT_EQ(restore(turns, 7, 1), absl::StatusCode::kDataLoss);
  EXPECT_EQ(restore(turns, uint64_t{1} << 32, 1), absl::StatusCode::kDataLoss);
  EXPECT_EQ(restore(turns, 8, kNan), absl::StatusCode::kDataLoss);
  EXPECT_EQ(restore({}, 8, 1), absl::StatusCode::kDataLoss);
}

// ---- the forms in a run

float LastStepsize(const toy::Problem& problem, const AliasConfig& config,
                   const toy::Options& options) {
  auto rule = MakeAliasRule(config);
  return toy::Train(problem, rule.get(), options).decisions.back().gamma;
}

TEST(AliasFormsTest, TheDirectionalFormIsNeverShorterThanTheSameMinibatchs) {
  const auto problem = toy::Quadratic();
  const toy::Options options{.main_rounds = 400};
  EXPECT_GE(LastStepsize(*problem, {.form = AliasForm::kDirectional}, options),
            LastStepsize(*problem, {}, options));
}

TEST(AliasFormsTest, OneGradientARoundMeasuresNoiseAndDecaysFaster) {
  const auto problem = toy::Logistic();
  const toy::Options options{.main_rounds = 640};
  EXPECT_LT(LastStepsize(*problem, {.form = AliasForm::kPrevious}, options),
            0.5f * LastStepsize(*problem, {}, options));
}

TEST(AliasFormsTest, TakingTurnsComesToTheSameStepsize) {
  const auto problem = toy::Logistic();
  const toy::Options options{.workers = 4, .main_rounds = 640};
  const float every = LastStepsize(*problem, {}, options);
  for (const uint64_t k : {2u, 4u, 8u}) {
    EXPECT_NEAR(std::log(LastStepsize(*problem, {.probe_every = k}, options) / every), 0, 0.3) << k;
  }
}

TEST(AliasFormsTest, RestoredBeforeEveryRoundTheyDecideTheSame) {
  const auto problem = toy::Logistic();
  for (const AliasForm form :
       {AliasForm::kSame, AliasForm::kPrevious, AliasForm::kDirectional, AliasForm::kExtrema}) {
    AliasConfig config{.option = AliasOption::kOptionI, .form = form};
    if (form == AliasForm::kSame || form == AliasForm::kDirectional) config.probe_every = 3;
    toy::Options options{.main_rounds = 200};
    const float once = LastStepsize(*problem, config, options);
    options.replace = [&] { return MakeAliasRule(config); };
    EXPECT_EQ(LastStepsize(*problem, config, options), once);
    EXPECT_GT(once, 0);
  }
}

TEST(AliasFormsTest, ALyingOrSilentWorkerOfFiveDoesNotMoveThem) {
  const auto problem = toy::Logistic();
  for (const AliasForm form :
       {AliasForm::kSame, AliasForm::kPrevious, AliasForm::kDirectional, AliasForm::kExtrema}) {
    const AliasConfig config{.form = form};
    const toy::Options honest{.workers = 5, .main_rounds = 400};
    const float expected = LastStepsize(*problem, config, honest);
    for (const double lie : {1e200, -1e200, kNan}) {
      toy::Options options = honest;
      options.tamper = [&](Round, Share share, WorkerScalars* s) {
        if (share != Share(1)) return;
        for (double& value : s->wanted) value = lie;
      };
      EXPECT_NEAR(std::log(LastStepsize(*problem, config, options) / expected), 0, 0.4)
          << static_cast<int>(form) << " " << lie;
    }
  }
}

}  // namespace
}  // namespace signvote
