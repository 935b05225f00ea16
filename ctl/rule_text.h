#pragma once
// What `signvote` says of the stepsize rule, in a table and on the screen alike. Pure.

#include <string>

#include "signvote/v1/admin.pb.h"

namespace signvote::ctl {

// "trial 3, 45 of at most 150 rounds", "over: 9 trials in 143 rounds". Empty: the rule runs no trials.
std::string RaceText(const v1::Race& race);

// By which numbers the rule went last: "s 0.0012  rho 1  z 0.13". Empty: none.
std::string RuleText(const v1::Status& status);

}  // namespace signvote::ctl
