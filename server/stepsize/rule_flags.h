#pragma once
// A stepsize rule as flags name it.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote {

struct RuleFlags {
  std::string rule = "alias";  // alias | fixed
  double stepsize = 1e-3;
  std::string schedule = "constant";  // constant | cosine | linear | wsd
  uint64_t warmup_rounds = 0;
  std::string alias_option = "II";  // I | II
  double alias_f_min = 0;
  double alias_d0 = 1e-6;
  uint64_t alias_probe_every = 1;
};

// INVALID_ARGUMENT names the culprit and the accepted range.
absl::StatusOr<std::unique_ptr<StepsizeRule>> MakeRule(const RuleFlags& flags);

}  // namespace signvote
