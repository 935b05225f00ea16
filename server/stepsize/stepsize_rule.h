#pragma once
// The stepsize rules behind one small interface: a rule sees a few scalars per worker and round,
// and answers what the round's commit does and with which stepsize.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/stepsize/types.h"

namespace signvote {

// Pure: no clock, no randomness, no I/O; the same inputs in the same order give the same decisions.
// A decision that no commit can carry out (StepsizeDecision says which those are, and DecideWithoutBallot)
// ends the run with a status that names the rule.
//
// Threads: thread-compatible. Called once per committed round, in order.
class StepsizeRule {
 public:
  virtual ~StepsizeRule() = default;

  virtual std::string_view name() const = 0;
  // Whether some round of such a run may want ScalarKind::kProbeL1: workers need memory for it.
  virtual bool probes() const = 0;
  // Whether some round of such a run may want ScalarKind::kChangeL1: likewise. Default: none.
  virtual bool keeps_gradients() const { return false; }
  // Whether commits may rewind to x_0 or rescale about it: everybody keeps it, joiners fetch it.
  virtual bool needs_x0() const = 0;
  // Whether no round from this one on rewinds, rescales or asks about x_0, whatever it is shown, so that
  // x_0 may be let go of; then it stays so. Default: never, of a rule that needs x_0.
  virtual bool x0_over(const RoundAhead&) const { return !needs_x0(); }
  // The scalars that workers shall send in this round, in the order in which they travel.
  virtual std::vector<ScalarKind> Wanted(const RoundAhead& ahead) const = 0;
  // How many of those, from the first on, the worker of this share is asked for; `wanted` is their
  // number, and the default.
  virtual size_t WantedOf(const RoundAhead& ahead, Share share, size_t wanted) const;

  // How the round that is about to open takes its minibatches: the same however often it is asked before
  // a decision. Default: a vote on one.
  virtual LocalSteps Local(const RoundAhead&) const { return {}; }
  // The most minibatches that Local() may ask for.
  virtual uint32_t local_steps_max() const { return 1; }

  // The round was voted on. With no worker's scalars the last stepsize is kept (the first one at
  // the start).
  virtual StepsizeDecision Decide(const RuleInput& input) = 0;
  // The round closes without a verdict: some part of the model has no ballot. Answers none, or a
  // rewind where the rule gives up what it was trying; never a step. Default: none, γ kept.
  virtual StepsizeDecision DecideWithoutBallot(const RuleInput& input);

  // Not OK: with its last decision the rule has given up. That one is committed, and the run ends with
  // this status, however often it is taken up again. Default: never.
  virtual absl::Status failure() const { return absl::OkStatus(); }
  // How far its trials are; what the last decision said of them, also of a rule that was restored.
  // Default: it runs none.
  virtual RaceProgress race() const { return {}; }

  // Everything that the next decisions depend on, as bytes (rule_state.h). A rule of the same
  // configuration that restores them decides as this one would.
  virtual std::string Save() const = 0;
  // INVALID_ARGUMENT: bytes of another rule or version. DATA_LOSS: damaged bytes, or values that no
  // rule of this configuration can have. The rule is then as it was.
  virtual absl::Status Restore(std::string_view bytes) = 0;
};

}  // namespace signvote
