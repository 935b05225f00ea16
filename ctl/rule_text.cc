#include "ctl/rule_text.h"

#include "absl/strings/str_cat.h"
#include "ctl/format.h"

namespace signvote::ctl {

std::string RaceText(const v1::Race& race) {
  if (race.rounds_max() == 0) return "";
  if (race.over()) {
    return absl::StrCat("over: ", Grouped(race.trials()), " trials in ", Grouped(race.rounds()),
                        " rounds");
  }
  return absl::StrCat("trial ", Grouped(race.trials()), ", ", Grouped(race.rounds()),
                      " of at most ", Grouped(race.rounds_max()), " rounds");
}

std::string RuleText(const v1::Status& status) {
  std::string text;
  for (const v1::RuleNumber& number : status.rule_numbers()) {
    absl::StrAppend(&text, text.empty() ? "" : "  ", number.name(), " ",
                    NumberOrDash("%.4g", number.value()));
  }
  return text;
}

}  // namespace signvote::ctl
