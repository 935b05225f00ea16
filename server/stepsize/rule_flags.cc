#include "server/stepsize/rule_flags.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/status.h"
#include "server/stepsize/alias.h"
#include "server/stepsize/fixed.h"
#include "server/stepsize/lever.h"
#include "server/stepsize/mechanic.h"
#include "server/stepsize/prodigy.h"
#include "server/stepsize/sos.h"

namespace signvote {
namespace {

// The range in which a stepsize is a normal fp32 number, whatever a schedule does to it for 10^6
// rounds.
constexpr double kStepsizeMin = 1e-30, kStepsizeMax = 1e30;

absl::Status CheckStepsize(const char* what, double stepsize) {
  if (stepsize >= kStepsizeMin && stepsize <= kStepsizeMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s %g is out of range; use a number in [1e-30, 1e30]", what, stepsize));
}

absl::StatusOr<Schedule> ParseSchedule(const RuleFlags& flags) {
  Schedule schedule{.warmup_rounds = flags.warmup_rounds};
  if (flags.schedule == "constant") {
    schedule.kind = ScheduleKind::kConstant;
  } else if (flags.schedule == "cosine") {
    schedule.kind = ScheduleKind::kCosine;
  } else if (flags.schedule == "linear") {
    schedule.kind = ScheduleKind::kLinear;
  } else if (flags.schedule == "wsd") {
    schedule.kind = ScheduleKind::kWsd;
  } else {
    return absl::InvalidArgumentError(absl::StrFormat(
        "schedule '%s' is unknown; use constant, cosine, linear or wsd", flags.schedule));
  }
  return schedule;
}

absl::StatusOr<std::unique_ptr<StepsizeRule>> MakeFixed(const RuleFlags& flags,
                                                        const RuleRun& run) {
  SIGNVOTE_ASSIGN_OR_RETURN(Schedule schedule, ParseSchedule(flags));
  SIGNVOTE_RETURN_IF_ERROR(CheckStepsize("stepsize", flags.stepsize));
  schedule.warmup_rounds = run.local.Before(schedule.warmup_rounds);
  return MakeFixedRule({.gamma0 = flags.stepsize, .schedule = schedule, .local = run.local});
}

absl::StatusOr<AliasOption> ParseAliasOption(const std::string& text) {
  if (text == "I") return AliasOption::kOptionI;
  if (text == "II") return AliasOption::kOptionII;
  return absl::InvalidArgumentError(
      absl::StrFormat("ALIAS option '%s' is unknown; use I or II", text));
}

absl::StatusOr<AliasForm> ParseAliasForm(const std::string& text) {
  if (text == "same") return AliasForm::kSame;
  if (text == "previous") return AliasForm::kPrevious;
  if (text == "directional") return AliasForm::kDirectional;
  if (text == "extrema") return AliasForm::kExtrema;
  return absl::InvalidArgumentError(absl::StrFormat(
      "ALIAS probe '%s' is unknown; use same, previous, directional or extrema", text));
}

absl::StatusOr<std::unique_ptr<StepsizeRule>> MakeAlias(const RuleFlags& flags) {
  const bool resumes = !flags.alias_eta0.has_value();
  SIGNVOTE_ASSIGN_OR_RETURN(const AliasOption option, ParseAliasOption(flags.alias_option));
  if (!std::isfinite(flags.alias_f_min)) {
    return absl::InvalidArgumentError(
        "the lower bound of the loss (ALIAS, Option II) must be a finite number");
  }
  if (!std::isfinite(flags.alias_d0) || flags.alias_d0 <= 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "d0 = %g (ALIAS, Option I) is out of range; use a finite number above 0", flags.alias_d0));
  }
  if (flags.alias_probe_every == 0 || flags.alias_probe_every > 1000000) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a probe in every %d-th round (ALIAS) is out of range; use 1 to 1000000",
                        flags.alias_probe_every));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const AliasForm form, ParseAliasForm(flags.alias_probe));
  const bool second_gradient = form == AliasForm::kSame || form == AliasForm::kDirectional;
  if (flags.alias_probe_every > 1 && !second_gradient) {
    return absl::InvalidArgumentError(
        absl::StrFormat("ALIAS with the probe '%s' takes no second gradient that could be left "
                        "away: probe in every "
                        "round, or choose the probe same or directional",
                        flags.alias_probe));
  }
  if (form != AliasForm::kExtrema && flags.alias_extrema_scale != RuleFlags().alias_extrema_scale) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "a scale of the extrema is given, and ALIAS with the probe '%s' has none: choose "
        "the probe extrema, or leave the scale away",
        flags.alias_probe));
  }
  if (option == AliasOption::kOptionII && flags.alias_d0 != RuleFlags().alias_d0) {
    return absl::InvalidArgumentError(
        "d0 is given, and ALIAS with Option II does not use it: choose Option I, or leave d0 away");
  }
  if (!(flags.alias_extrema_scale >= 1e-30 && flags.alias_extrema_scale <= 1e30)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the scale %g of the extrema (ALIAS) is out of range; use a number in [1e-30, "
        "1e30]",
        flags.alias_extrema_scale));
  }
  const double eta0 = flags.alias_eta0.value_or(0);
  if (!std::isfinite(eta0) || eta0 < 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "eta0 = %g (ALIAS) is out of range; use a finite number of 0 or more", eta0));
  }
  return MakeAliasRule({.option = option,
                        .d0 = flags.alias_d0,
                        .f_min = flags.alias_f_min,
                        .form = form,
                        .probe_every = flags.alias_probe_every,
                        .extrema_scale = flags.alias_extrema_scale,
                        .eta0 = eta0,
                        .resumed_stepsize = resumes ? flags.alias_resumed_stepsize : 0.0f,
                        .unknown_start = resumes && flags.alias_unknown_start});
}

// T: the gradients that a worker's steps are of. 0: unknown.
uint64_t LengthOf(const RuleRun& run) {
  return run.local.on() ? run.local.minibatches() : run.main_rounds_max;
}

// What T counts.
const char* UnitOf(const RuleRun& run) { return run.local.on() ? "minibatches" : "main rounds"; }

// A trial with local steps is of four rounds, in which nobody calms anybody: none in a run in which
// `auto` would not run any either.
uint64_t RaceFrom(const RuleRun& run) {
  return run.local.on() ? kAutoLeverRounds : kShortRunRounds;
}

bool IsShort(const RuleRun& run) { return LengthOf(run) > 0 && LengthOf(run) < RaceFrom(run); }

absl::Status CheckLocal(const std::string& rule, const RuleRun& run) {
  const bool goes_by_one =
      rule == "alias" || rule == "prodigy" || rule == "mechanic" || rule == "sos";
  if (!run.local.on() || !goes_by_one) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "the rule %s goes by the one gradient of a round, and --local-steps %s takes several; use "
      "--rule lever or fixed, or --local-steps 1",
      rule, run.local.text()));
}

bool HasMomentum(const DirectionConfig& direction) {
  const std::vector<StatePlane> planes = PlanesOf(direction);
  return std::any_of(planes.begin(), planes.end(), [](const StatePlane& plane) {
    return plane.kind == StatePlane::Kind::kMomentum;
  });
}

absl::StatusOr<std::unique_ptr<StepsizeRule>> MakeLever(const RuleFlags& flags,
                                                        const RuleRun& run) {
  SIGNVOTE_RETURN_IF_ERROR(CheckStepsize("Lever's start value", flags.lever_start));
  LeverConfig config{
      .start = flags.lever_start, .main_rounds = run.main_rounds_max, .local = run.local};
  if (flags.lever_form == "lite") {
    config.form = LeverForm::kLite;
  } else if (flags.lever_form != "full") {
    return absl::InvalidArgumentError(
        absl::StrFormat("Lever's form '%s' is unknown; use full or lite", flags.lever_form));
  }
  if (flags.lever_race == "off") {
    config.race = false;
  } else if (flags.lever_race == "auto") {
    config.race = !IsShort(run);
  } else if (flags.lever_race != "on") {
    return absl::InvalidArgumentError(
        absl::StrFormat("Lever's race '%s' is unknown; use auto, on or off", flags.lever_race));
  }
  if (flags.lever_race == "on" && LengthOf(run) > 0 && LengthOf(run) < kLeverRaceRoundsMin) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a quarter of %d %s is too short for Lever's race; train for %d %s and "
                        "more, or leave --lever-race away",
                        LengthOf(run), UnitOf(run), kLeverRaceRoundsMin,
                        run.local.on() ? "minibatches" : "rounds"));
  }
  config.momentum = HasMomentum(run.direction);
  return MakeLeverRule(config);
}

// What a rule is told of a step: its signs, or no more than its length.
absl::Status CheckStep(const RuleFlags& flags, const std::string& rule, StepBy step_by) {
  if (step_by == StepBy::kVerdict) return absl::OkStatus();
  if (rule == "alias" && (flags.alias_option == "I" || flags.alias_probe == "directional")) {
    return absl::InvalidArgumentError(
        "ALIAS, Option I and the probe directional, needs the signs that a step moved by, which "
        "--aggregate average and --dense have not; use Option II with another probe, or leave "
        "those away");
  }
  const bool by_length = rule == "alias" || rule == "prodigy" || rule == "sos";
  if (step_by != StepBy::kUpdates || !by_length) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("the rule %s goes by the length of a step, which --dense leaves to an "
                      "optimizer; use --rule fixed, lever or mechanic",
                      rule));
}

}  // namespace

std::string ChosenRule(const RuleFlags& flags, const RuleRun& run) {
  if (flags.rule != "auto") return flags.rule;
  if (run.local.on()) return "lever";
  const bool brief = run.main_rounds_max > 0 && run.main_rounds_max < kAutoLeverRounds;
  return brief && run.step_by != StepBy::kUpdates ? "alias" : "lever";
}

bool ResumesStepsize(const RuleFlags& flags, const RuleRun& run) {
  return ChosenRule(flags, run) == "alias" && !flags.alias_eta0.has_value();
}

absl::StatusOr<std::unique_ptr<StepsizeRule>> MakeRule(const RuleFlags& flags, const RuleRun& run) {
  const std::string rule = ChosenRule(flags, run);
  SIGNVOTE_RETURN_IF_ERROR(CheckStep(flags, rule, run.step_by));
  SIGNVOTE_RETURN_IF_ERROR(CheckLocal(rule, run));
  if (rule == "fixed") return MakeFixed(flags, run);
  if (rule == "alias") return MakeAlias(flags);
  if (rule == "lever") return MakeLever(flags, run);
  if (rule != "prodigy" && rule != "mechanic" && rule != "sos") {
    return absl::InvalidArgumentError(
        absl::StrFormat("stepsize rule '%s' is unknown; use auto, alias, fixed, lever, mechanic, "
                        "prodigy or sos",
                        rule));
  }
  if (flags.rival_start != 0) {
    SIGNVOTE_RETURN_IF_ERROR(CheckStepsize("the start value", flags.rival_start));
  }
  if (rule == "sos") {
    if (run.main_rounds_max > 0 && run.main_rounds_max < kSosRoundsMin) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "a quarter of %d main rounds is too short for the trials of SOS; train for %d rounds and "
          "more, or choose another --rule",
          run.main_rounds_max, kSosRoundsMin));
    }
    return MakeSosRule({.start = flags.rival_start, .main_rounds = run.main_rounds_max});
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const Schedule schedule, ParseSchedule(flags));
  if (rule == "prodigy") return MakeProdigyRule({.d0 = flags.rival_start, .schedule = schedule});
  if (flags.rival_start != 0 &&
      !(flags.rival_start >= kMechanicStartMin && flags.rival_start <= kMechanicStartMax)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Mechanic's start value %g is out of range; use a number in [1e-12, 1e12]",
                        flags.rival_start));
  }
  return MakeMechanicRule({.start = flags.rival_start, .schedule = schedule});
}

std::string ExplainRule(const RuleFlags& flags, const RuleRun& run) {
  const std::string rule = ChosenRule(flags, run);
  const bool chosen = flags.rule == "auto";
  if (!chosen && rule != "lever") return "";
  if (rule == "alias") {
    return absl::StrFormat(
        "trials of stepsizes would be too short in a run of %d main rounds, fewer than %d: ALIAS "
        "chooses the stepsize",
        run.main_rounds_max, kAutoLeverRounds);
  }
  if (flags.lever_race != "auto") return "";
  if (!IsShort(run)) {
    if (!chosen) return "";
    return absl::StrFormat(
        "Lever chooses the stepsize, after a race of stepsizes that comes on top of the %s: a "
        "quarter as many at most",
        UnitOf(run));
  }
  return absl::StrFormat(
      "a race of stepsizes would take too much of a run of %d %s, fewer than %d: Lever runs "
      "without it, from the start value %g",
      LengthOf(run), UnitOf(run), RaceFrom(run), flags.lever_start);
}

}  // namespace signvote
