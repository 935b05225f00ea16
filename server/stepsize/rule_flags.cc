#include "server/stepsize/rule_flags.h"

#include <cmath>

#include "absl/strings/str_format.h"
#include "server/stepsize/alias.h"
#include "server/stepsize/fixed.h"

namespace signvote {
namespace {

absl::StatusOr<ScheduleKind> ParseSchedule(const std::string& text) {
  if (text == "constant") return ScheduleKind::kConstant;
  if (text == "cosine") return ScheduleKind::kCosine;
  if (text == "linear") return ScheduleKind::kLinear;
  if (text == "wsd") return ScheduleKind::kWsd;
  return absl::InvalidArgumentError(
      absl::StrFormat("schedule '%s' is unknown; use constant, cosine, linear or wsd", text));
}

absl::StatusOr<AliasOption> ParseAliasOption(const std::string& text) {
  if (text == "I") return AliasOption::kOptionI;
  if (text == "II") return AliasOption::kOptionII;
  return absl::InvalidArgumentError(
      absl::StrFormat("ALIAS option '%s' is unknown; use I or II", text));
}

}  // namespace

bool ResumesStepsize(const RuleFlags& flags) {
  return flags.rule == "alias" && !flags.alias_eta0.has_value();
}

absl::StatusOr<std::unique_ptr<StepsizeRule>> MakeRule(const RuleFlags& flags) {
  if (flags.rule == "fixed") {
    const absl::StatusOr<ScheduleKind> schedule = ParseSchedule(flags.schedule);
    if (!schedule.ok()) return schedule.status();
    // The range in which γ is a normal fp32 number, whatever the schedule does to it for 10^6
    // rounds.
    if (!(flags.stepsize >= 1e-30 && flags.stepsize <= 1e30)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "stepsize %g is out of range; use a number in [1e-30, 1e30]", flags.stepsize));
    }
    return MakeFixedRule(
        {.gamma0 = flags.stepsize, .schedule = *schedule, .warmup_rounds = flags.warmup_rounds});
  }
  if (flags.rule == "alias") {
    const absl::StatusOr<AliasOption> option = ParseAliasOption(flags.alias_option);
    if (!option.ok()) return option.status();
    if (!std::isfinite(flags.alias_f_min)) {
      return absl::InvalidArgumentError(
          "the lower bound of the loss (ALIAS, Option II) must be a finite number");
    }
    if (!std::isfinite(flags.alias_d0) || flags.alias_d0 <= 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("d0 = %g (ALIAS, Option I) is out of range; use a finite number above 0",
                          flags.alias_d0));
    }
    if (flags.alias_probe_every == 0 || flags.alias_probe_every > 1000000) {
      return absl::InvalidArgumentError(
          absl::StrFormat("a probe in every %d-th round (ALIAS) is out of range; use 1 to 1000000",
                          flags.alias_probe_every));
    }
    const double eta0 = flags.alias_eta0.value_or(0);
    if (!std::isfinite(eta0) || eta0 < 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "eta0 = %g (ALIAS) is out of range; use a finite number of 0 or more", eta0));
    }
    return MakeAliasRule(
        {.option = *option,
         .d0 = flags.alias_d0,
         .f_min = flags.alias_f_min,
         .probe_every = flags.alias_probe_every,
         .eta0 = eta0,
         .resumed_stepsize = ResumesStepsize(flags) ? flags.alias_resumed_stepsize : 0.0f,
         .unknown_start = ResumesStepsize(flags) && flags.alias_unknown_start});
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("stepsize rule '%s' is unknown; use alias or fixed", flags.rule));
}

}  // namespace signvote
