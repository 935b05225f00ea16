#include "server/stepsize/rule_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <span>
#include <string>

namespace signvote {
namespace {

using testing::HasSubstr;

TEST(RuleFlagsTest, MakesEachRuleByName) {
  EXPECT_EQ((*MakeRule({}))->name(), "alias");
  EXPECT_EQ((*MakeRule({.rule = "alias", .alias_option = "I"}))->name(), "alias");
  for (const char* schedule : {"constant", "cosine", "linear", "wsd"}) {
    EXPECT_EQ((*MakeRule({.rule = "fixed", .schedule = schedule}))->name(), "fixed");
  }
}

TEST(RuleFlagsTest, NamesTheCulpritAndWhatIsAccepted) {
  const auto message = [](const RuleFlags& flags) {
    const absl::Status status = MakeRule(flags).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message({.rule = "adam"}), HasSubstr("'adam' is unknown; use alias or fixed"));
  EXPECT_THAT(message({.rule = "fixed", .stepsize = 0}), HasSubstr("stepsize 0 is out of range"));
  EXPECT_THAT(message({.rule = "fixed", .stepsize = std::nan("")}), HasSubstr("out of range"));
  EXPECT_THAT(message({.rule = "fixed", .schedule = "step"}),
              HasSubstr("use constant, cosine, linear or wsd"));
  EXPECT_THAT(message({.alias_option = "III"}), HasSubstr("use I or II"));
  EXPECT_THAT(message({.alias_f_min = std::nan("")}), HasSubstr("finite"));
  EXPECT_THAT(message({.alias_d0 = 0}), HasSubstr("above 0"));
  EXPECT_THAT(message({.alias_probe_every = 0}), HasSubstr("use 1 to 1000000"));
  EXPECT_THAT(message({.alias_eta0 = -1}), HasSubstr("eta0 = -1 (ALIAS) is out of range"));
  EXPECT_THAT(message({.alias_eta0 = std::nan("")}), HasSubstr("finite number of 0 or more"));
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
  EXPECT_EQ(gamma({}), 1e-5f);
  EXPECT_EQ(gamma({.alias_resumed_stepsize = 0.25f}), 0.25f);
  EXPECT_EQ(gamma({.alias_eta0 = 200}), 0.1f);
  EXPECT_EQ(gamma({.alias_eta0 = 200, .alias_resumed_stepsize = 0.25f}), 0.1f);
  EXPECT_EQ(gamma({.alias_eta0 = 0, .alias_resumed_stepsize = 0.25f}), 1e-5f);
}

}  // namespace
}  // namespace signvote
