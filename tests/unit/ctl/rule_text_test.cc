#include "ctl/rule_text.h"

#include <gtest/gtest.h>

#include <cmath>

namespace signvote::ctl {
namespace {

TEST(RuleTextTest, ARaceSaysItsTrialAndWhatItMayTakeAndInTheEndWhatItTook) {
  v1::Race race;
  race.set_trials(3);
  race.set_rounds(1045);
  EXPECT_EQ(RaceText(race), "") << "the rule runs no trials";
  race.set_rounds_max(1500);
  EXPECT_EQ(RaceText(race), "trial 3, 1,045 of at most 1,500 rounds");
  race.set_over(true);
  EXPECT_EQ(RaceText(race), "over: 3 trials in 1,045 rounds");
}

TEST(RuleTextTest, TheRulesNumbersStandInTheirOrder) {
  v1::Status status;
  EXPECT_EQ(RuleText(status), "");
  const auto add = [&](const char* name, double value) {
    v1::RuleNumber& number = *status.add_rule_numbers();
    number.set_name(name);
    number.set_value(value);
  };
  add("s", 0.00123456);
  add("rho", 1);
  add("z", NAN);
  EXPECT_EQ(RuleText(status), "s 0.001235  rho 1  z -");
}

}  // namespace
}  // namespace signvote::ctl
