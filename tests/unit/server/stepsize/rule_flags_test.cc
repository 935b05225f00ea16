#include "server/stepsize/rule_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"

namespace signvote {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(RuleFlagsTest, MakesEachRuleByName) {
  EXPECT_EQ((*MakeRule({.rule = "alias", .alias_option = "I"}))->name(), "alias");
  for (const char* schedule : {"constant", "cosine", "linear", "wsd"}) {
    for (const char* rule : {"fixed", "mechanic", "prodigy"})
      EXPECT_EQ((*MakeRule({.rule = rule, .schedule = schedule}))->name(), rule);
  }
  for (const char* probe : {"same", "previous", "directional", "extrema"}) {
    const auto rule = *MakeRule({.rule = "alias", .alias_probe = probe});
    const std::string form = probe;
    EXPECT_EQ(rule->probes(), form == "same" || form == "directional");
    EXPECT_EQ(rule->keeps_gradients(), form == "previous");
  }
  EXPECT_EQ((*MakeRule({.rule = "sos"}))->name(), "sos");
  for (const char* form : {"full", "lite"}) {
    for (const char* race : {"auto", "on", "off"}) {
      const RuleFlags flags{.rule = "lever", .lever_form = form, .lever_race = race};
      EXPECT_EQ((*MakeRule(flags, {.main_rounds_max = 1000}))->name(), "lever");
      EXPECT_EQ((*MakeRule(flags))->name(), "lever");
    }
  }
}

TEST(RuleFlagsTest, NamesTheCulpritAndWhatIsAccepted) {
  const auto message = [](const RuleFlags& flags) {
    const absl::Status status = MakeRule(flags).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message({.rule = "adam"}), HasSubstr("'adam' is unknown; use auto, alias, fixed,"));
  EXPECT_THAT(message({.rule = "fixed", .stepsize = 0}), HasSubstr("stepsize 0 is out of range"));
  EXPECT_THAT(message({.rule = "fixed", .stepsize = std::nan("")}), HasSubstr("out of range"));
  EXPECT_THAT(message({.rule = "fixed", .schedule = "step"}),
              HasSubstr("use constant, cosine, linear or wsd"));
  EXPECT_THAT(message({.rule = "prodigy", .schedule = "step"}), HasSubstr("use constant"));
  EXPECT_THAT(message({.rule = "prodigy", .rival_start = -1}), HasSubstr("start value -1 is out"));
  EXPECT_THAT(message({.rule = "mechanic", .rival_start = 1e-15}),
              HasSubstr("start value 1e-15 is out of range; use a number in [1e-12, 1e12]"));
  EXPECT_THAT(message({.rule = "sos", .rival_start = std::nan("")}), HasSubstr("out of range"));
  EXPECT_THAT(message({.rule = "lever", .lever_start = 0}), HasSubstr("start value 0 is out"));
  EXPECT_THAT(message({.rule = "lever", .lever_form = "half"}), HasSubstr("use full or lite"));
  EXPECT_THAT(message({.rule = "lever", .lever_race = "yes"}), HasSubstr("use auto, on or off"));
  EXPECT_THAT(message({.rule = "alias", .alias_option = "III"}), HasSubstr("use I or II"));
  EXPECT_THAT(message({.rule = "alias", .alias_f_min = std::nan("")}), HasSubstr("finite"));
  EXPECT_THAT(message({.rule = "alias", .alias_d0 = 0}), HasSubstr("above 0"));
  EXPECT_THAT(message({.rule = "alias", .alias_probe_every = 0}), HasSubstr("use 1 to 1000000"));
  EXPECT_THAT(message({.rule = "alias", .alias_probe = "none"}),
              HasSubstr("use same, previous, directional"));
  EXPECT_THAT(message({.rule = "alias", .alias_probe = "extrema", .alias_extrema_scale = 0}),
              HasSubstr("scale 0 of the extrema (ALIAS) is out of range"));
  EXPECT_THAT(message({.rule = "alias", .alias_probe = "same", .alias_extrema_scale = 100}),
              HasSubstr("ALIAS with the probe 'same' has none"));
  EXPECT_THAT(message({.rule = "alias", .alias_option = "II", .alias_d0 = 1e-3}),
              HasSubstr("ALIAS with Option II does not use it"));
  for (const char* probe : {"previous", "extrema"}) {
    EXPECT_THAT(message({.rule = "alias", .alias_probe = probe, .alias_probe_every = 2}),
                HasSubstr("takes no second gradient"));
  }
  EXPECT_THAT(message({.rule = "alias", .alias_eta0 = -1}),
              HasSubstr("eta0 = -1 (ALIAS) is out of range"));
  EXPECT_THAT(message({.rule = "alias", .alias_eta0 = std::nan("")}),
              HasSubstr("finite number of 0 or more"));
}

TEST(RuleFlagsTest, AGivenEtaStandsInPlaceOfTheStepsizeThatTheRunGoesOnFrom) {
  const auto gamma = [](const RuleFlags& flags) {
    const auto rule = *MakeRule(flags);
    float last = 0;
    const WorkerScalars worker{.loss = 2, .g_l1 = 1, .g_l2_squared = 1};
    for (uint64_t t = 0; t < 2; ++t) {
      last = rule->Decide({.ahead = {.main_rounds = t},
                           .main_rounds_max = 20,
                           .workers = std::span(&worker, 1)})
                 .gamma;
    }
    return last;
  };
  EXPECT_EQ(gamma({.rule = "alias"}), 1e-5f);
  EXPECT_EQ(gamma({.rule = "alias", .alias_resumed_stepsize = 0.25f}), 0.25f);
  EXPECT_EQ(gamma({.rule = "alias", .alias_eta0 = 200}), 0.1f);
  EXPECT_EQ(gamma({.rule = "alias", .alias_eta0 = 200, .alias_resumed_stepsize = 0.25f}), 0.1f);
  EXPECT_EQ(gamma({.rule = "alias", .alias_eta0 = 0, .alias_resumed_stepsize = 0.25f}), 1e-5f);
}

TEST(RuleFlagsTest, AShortRunHasNoRaceAndTheLogSaysWhy) {
  const RuleFlags flags{.rule = "lever", .lever_start = 0.25};
  const auto first = [&](const RuleRun& run) { return (*MakeRule(flags, run))->Decide({}); };
  const RuleRun brief{.main_rounds_max = kShortRunRounds - 1},
      long_run{.main_rounds_max = kShortRunRounds};
  EXPECT_TRUE(first(brief).main_round);
  EXPECT_EQ(first(brief).gamma, 0.25f);
  EXPECT_THAT(
      ExplainRule(flags, brief),
      HasSubstr("399 main rounds, fewer than 400: Lever runs without it, from the start value "
                "0.25"));
  EXPECT_FALSE(first(long_run).main_round);
  EXPECT_EQ(ExplainRule(flags, long_run), "");
  EXPECT_EQ(ExplainRule({.rule = "alias"}, brief), "") << "a person chose it";
  EXPECT_EQ(ExplainRule({.rule = "lever", .lever_race = "off"}, brief), "");
}

TEST(RuleFlagsTest, TheDefaultIsLeverAndInAShortRunAliasAndTheLogSaysWhy) {
  const RuleRun brief{.main_rounds_max = kAutoLeverRounds - 1},
      long_run{.main_rounds_max = kAutoLeverRounds};
  EXPECT_EQ((*MakeRule({}, long_run))->name(), "lever");
  EXPECT_FALSE((*MakeRule({}, long_run))->Decide({}).main_round) << "it races";
  EXPECT_EQ((*MakeRule({}))->name(), "lever") << "of unknown length";
  EXPECT_THAT(ExplainRule({}, long_run), HasSubstr("Lever chooses the stepsize, after a race"));
  EXPECT_EQ((*MakeRule({}, brief))->name(), "alias");
  EXPECT_THAT(ExplainRule({}, brief),
              HasSubstr("639 main rounds, fewer than 640: ALIAS chooses the stepsize"));
  // ALIAS goes by the length of a step.
  RuleRun dense = brief;
  dense.step_by = StepBy::kUpdates;
  EXPECT_EQ((*MakeRule({}, dense))->name(), "lever");
  EXPECT_THAT(ExplainRule({}, dense), HasSubstr("Lever chooses the stepsize, after a race"));
  dense.main_rounds_max = kShortRunRounds - 1;
  EXPECT_THAT(ExplainRule({}, dense), HasSubstr("Lever runs without it"));
}

RuleRun LocalRunOf(const char* steps, uint64_t rounds) {
  return {.main_rounds_max = rounds, .local = *LocalSchedule::Parse(steps, rounds)};
}

TEST(RuleFlagsTest, WithLocalStepsTheDefaultIsLeverAndAShortRunHasNoRace) {
  const RuleRun long_run = LocalRunOf("16", 40), brief = LocalRunOf("16", 39);
  EXPECT_EQ(ChosenRule({}, long_run), "lever");
  EXPECT_EQ(ChosenRule({}, brief), "lever");
  EXPECT_TRUE((*MakeRule({}, long_run))->Local({}).is_silent());
  EXPECT_FALSE((*MakeRule({}, brief))->Local({}).is_silent());
  EXPECT_THAT(ExplainRule({}, long_run), HasSubstr("comes on top of the minibatches"));
  EXPECT_THAT(ExplainRule({}, brief), HasSubstr("624 minibatches, fewer than 640: Lever runs "
                                                "without it, from the start value 0.001"));
  EXPECT_TRUE((*MakeRule({.lever_race = "on"}, brief))->Local({}).is_silent());
  EXPECT_THAT(std::string(MakeRule({.lever_race = "on"}, LocalRunOf("16", 19)).status().message()),
              HasSubstr("a quarter of 304 minibatches is too short"));
}

TEST(RuleFlagsTest, RulesThatGoByOneGradientRefuseLocalStepsByName) {
  const RuleRun local = LocalRunOf("16", 100);
  for (const char* rule : {"alias", "prodigy", "mechanic", "sos"}) {
    const absl::Status status = MakeRule({.rule = rule}, local).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(absl::StrCat("the rule ", rule)), HasSubstr("--local-steps 16"),
                      HasSubstr("use --rule lever or fixed")));
  }
  EXPECT_TRUE(MakeRule({.rule = "lever"}, local).ok());
}

TEST(RuleFlagsTest, AWarmUpOfRoundsIsOneOfTheirMinibatches) {
  const auto rule =
      *MakeRule({.rule = "fixed", .stepsize = 1, .warmup_rounds = 2}, LocalRunOf("16", 100));
  EXPECT_FLOAT_EQ(rule->Local({.main_rounds = 0}).eta_first, 1.0f / 32);
  EXPECT_FLOAT_EQ(rule->Local({.main_rounds = 1}).eta_last, 1.0f);
}

TEST(RuleFlagsTest, TheDefaultGoesOnFromAStepsizeWhereItIsAlias) {
  EXPECT_TRUE(ResumesStepsize({}, {.main_rounds_max = kAutoLeverRounds - 1}));
  EXPECT_FALSE(ResumesStepsize({}, {.main_rounds_max = kAutoLeverRounds}));
  EXPECT_FALSE(ResumesStepsize({.alias_eta0 = 0}, {.main_rounds_max = kAutoLeverRounds - 1}));
  EXPECT_TRUE(ResumesStepsize({.rule = "alias"}, {.main_rounds_max = kAutoLeverRounds}));
}

TEST(RuleFlagsTest, ARunThatIsTooShortForTrialsIsTold) {
  const auto message = [](const RuleFlags& flags, uint64_t rounds) {
    return std::string(MakeRule(flags, {.main_rounds_max = rounds}).status().message());
  };
  EXPECT_THAT(message({.rule = "lever", .lever_race = "on"}, 319),
              HasSubstr("for 320 rounds and more"));
  EXPECT_EQ(message({.rule = "lever", .lever_race = "on"}, 320), "");
  EXPECT_THAT(message({.rule = "sos"}, 191), HasSubstr("for 192 rounds and more"));
  EXPECT_EQ(message({.rule = "sos"}, 192), "");
}

TEST(RuleFlagsTest, LeverBeginsLowerWhereTheDirectionHasMomentum) {
  const auto first_main = [](const DirectionConfig& direction) {
    const auto rule =
        *MakeRule({.rule = "lever"}, {.main_rounds_max = 640, .direction = direction});
    // A valley at 1e-2.
    float gamma = 0;
    uint64_t step = 0;
    while (true) {
      const double away = gamma > 0 ? std::log10(gamma) + 2 : 0;
      const WorkerScalars worker{.loss = 3 + 0.01 * static_cast<double>(step) * (away * away - 1)};
      const StepsizeDecision decision =
          rule->Decide({.ahead = {.data_step = DataStep(step)}, .workers = std::span(&worker, 1)});
      if (decision.main_round) return decision.gamma;
      gamma = decision.gamma;
      step = decision.kind == CommitKind::kRewind ? 0 : step + 1;
    }
  };
  const float raw = first_main({.kind = DirectionKind::kSignSgd});
  const float momentum = first_main({.kind = DirectionKind::kSignum});
  EXPECT_NEAR(momentum, 0.5e-2f, 1e-4f);
  EXPECT_THAT(raw, testing::AllOf(testing::Gt(0.3e-2f), testing::Le(0.5001e-2f)));
  // An envelope is state, and no momentum.
  EXPECT_EQ(first_main({.kind = DirectionKind::kSignSgd, .envelope = Envelope::kCoordinate}), raw);
  EXPECT_EQ(first_main({.kind = DirectionKind::kStoSign, .beta = 0}), raw);
  for (const DirectionKind kind : {DirectionKind::kNesterovSignum, DirectionKind::kLion,
                                   DirectionKind::kStoSign, DirectionKind::kMuon}) {
    EXPECT_EQ(first_main({.kind = kind}), momentum);
  }
}

}  // namespace
}  // namespace signvote
