#pragma once
// A stepsize rule as flags name it.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/direction_config.h"
#include "server/stepsize/local_schedule.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote {

struct RuleFlags {
  std::string rule = "auto";  // auto | alias | fixed | lever | mechanic | prodigy | sos
  double stepsize = 1e-3;
  std::string schedule = "constant";  // constant | cosine | linear | wsd
  uint64_t warmup_rounds = 0;
  std::string alias_option = "II";  // I | II
  double alias_f_min = 0;
  double alias_d0 = 1e-6;
  std::string alias_probe = "same";  // same | previous | directional | extrema
  uint64_t alias_probe_every = 1;
  double alias_extrema_scale = 1;
  // nullopt: what follows from alias_resumed_stepsize, 0 without one
  std::optional<double> alias_eta0;
  // No flag: where ALIAS stood in the run whose model this one starts from; 0: nowhere. Not beside
  // alias_eta0.
  float alias_resumed_stepsize = 0;
  // No flag: this run starts from a model that says no such stepsize. It counts beside alias_eta0 for
  // nothing.
  bool alias_unknown_start = false;
  double lever_start = 1e-3;
  std::string lever_form = "full";  // full | lite
  std::string lever_race = "auto";  // auto | on | off
  // Lever is not told how long the run will be, and goes on in legs that double: RuleRunOf().
  bool length_unknown = false;
  double rival_start = 0;  // of mechanic, prodigy and sos; 0: FirstStepsize()
};

// In runs of fewer main rounds a race would take too much.
inline constexpr uint64_t kShortRunRounds = 400;
// In runs of fewer main rounds Lever's trials are of about 30 rounds and fewer, in which a network that
// collapses to a constant answer can pass for one that learns: `auto` does not take their word.
inline constexpr uint64_t kAutoLeverRounds = 640;

// What the coordinates of a step move by.
enum class StepBy {
  kVerdict,    // γ·scale, in the verdict's direction
  kMeanSigns,  // γ·scale at most
  kUpdates,    // some of them any distance: there are dense tensors
};

// What of the run a rule is made for.
struct RuleRun {
  uint64_t main_rounds_max = 0;  // 0: unknown
  DirectionConfig direction;
  StepBy step_by = StepBy::kVerdict;
  LocalSchedule local;  // of main_rounds_max
};

// The rule that `auto` stands for in such a run; of other flags theirs. Lever, but ALIAS below
// kAutoLeverRounds where it can serve (docs/algorithms/lever.md has the comparison). With local steps
// always Lever, and without a race below kAutoLeverRounds minibatches: ALIAS has no second gradient there.
std::string ChosenRule(const RuleFlags& flags, const RuleRun& run);

// Whether the rule goes on from the stepsize of a run whose model this one starts from, where it is known.
bool ResumesStepsize(const RuleFlags& flags, const RuleRun& run);

// INVALID_ARGUMENT names the culprit and the accepted range, or what a rule needs that such a run has not.
absl::StatusOr<std::unique_ptr<StepsizeRule>> MakeRule(const RuleFlags& flags,
                                                       const RuleRun& run = {});

// What MakeRule() chose in place of a person, and why: one sentence. Empty: nothing.
std::string ExplainRule(const RuleFlags& flags, const RuleRun& run);

}  // namespace signvote
