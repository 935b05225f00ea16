#pragma once
// What a stepsize rule is shown and what it answers. Plain values; formulas and sources:
// docs/algorithms/README.md.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/ids.h"
#include "common/local_steps.h"
#include "common/vote_terms.h"

namespace signvote {

// What one worker sends beside its ballot; all sums over the whole model, of the gradient of its
// mean loss.
struct WorkerScalars {
  double loss = 0;          // nats (or the model's unit), mean over the worker's minibatch
  double g_l1 = 0;          // ‖g‖₁
  double g_l2_squared = 0;  // ‖g‖₂²
  uint64_t nonfinite_coordinates = 0;
  // training samples behind the gradient (tokens for a language model)
  uint64_t samples = 0;
  // What the round asked for, in that order; NaN, or left away at the end: the worker cannot tell.
  std::vector<double> wanted;
  // Per tensor, in order of the layout: the mean length of what is signed, where a ballot is the sign
  // of more than a direction (error feedback, local steps); else empty.
  std::vector<float> displacement_mean;
  // Local steps: minibatches that the worker took for this ballot; 0: all that were asked for.
  uint32_t local_steps = 0;
};

// The value of `kind` in scalars that answer a round which asked for `asked`; nullopt when the round
// did not ask for it, or the worker could not tell.
std::optional<double> ScalarOf(const WorkerScalars& scalars, std::span<const ScalarKind> asked,
                               ScalarKind kind);

// Whether the scalars may be used: everything finite, no norm and no length negative, no more wanted
// values than were asked for; of those NaN is allowed.
bool Plausible(const WorkerScalars& scalars, std::span<const ScalarKind> asked);

// The round that is about to open, as a rule sees it.
struct RoundAhead {
  Round round;
  DataStep data_step;
  uint64_t main_rounds = 0;  // main rounds committed so far: t of a schedule
};

struct RuleInput {
  RoundAhead ahead;                   // the round being committed, as it opened
  uint64_t main_rounds_max = 0;       // T, planned length of the run in main rounds; 0: unknown
  float gamma = 0;                    // the last committed stepsize; 0 before the first
  double x0_max_abs = 0;              // max_i |x_0,i|
  double step_scale_max = 1;          // max_k scale_k
  uint64_t coordinates = 0;           // d; 0: unknown
  std::span<const ScalarKind> asked;  // the scalars that the round wanted
  // of the counted workers whose scalars arrived in time; may be empty
  std::span<const WorkerScalars> workers;
  // Without a verdict only: every member abstained because its loss, or its gradient, is not finite.
  bool nonfinite = false;
  // shares[i] is the share of the data that workers[i] is of. Empty: nobody says, and i stands for it
  std::span<const Share> shares = {};
  // How the round's minibatches were taken, as the rule had said before it opened.
  LocalSteps local = {};
};

// The share that input.workers[i] is of. REQUIRES: i < input.workers.size().
Share ShareOf(const RuleInput& input, size_t i);

// How far the trials are of a rule that runs some before the run. Their rounds are no main rounds.
struct RaceProgress {
  uint64_t trials = 0;      // that were begun
  uint64_t rounds = 0;      // of all of them so far
  uint64_t rounds_max = 0;  // that they may take; 0: the rule runs no trials
  bool over = false;
  // At most.
  uint64_t rounds_left() const { return over || rounds >= rounds_max ? 0 : rounds_max - rounds; }
  bool operator==(const RaceProgress&) const = default;
};

// What a rule proposes for one round. The engine's Course turns it into a commit.
struct StepsizeDecision {
  CommitKind kind = CommitKind::kStep;
  // ≥ 0, finite; none keeps the last one, but for a trial with local steps. With local steps it is the
  // inner stepsize with which the round began, for people: how far the step goes is what workers say.
  float gamma = 0;
  // > 0, finite; rescaling about x_0 before the step; 1: none, as with every other kind and every rule
  // that does without x_0
  float rho = 1;
  // The minibatch of the next round; nullopt: the one after this round's, of which there may be several.
  std::optional<DataStep> next_data_step;
  bool main_round = true;  // counts towards T; only a step can
  bool run_done = false;   // this commit is the last one
  std::string reason;      // a few words for the log: "alias: eta=… num=…", "no scalars: kept"
  // What keeps the rule from its work and a person can mend, with the remedy: one sentence, the same
  // as long as it lasts; empty: nothing.
  std::string warning;
  // The rule's state after this decision, by name, for logs and metrics (e.g. {"eta", 12.5}).
  std::vector<std::pair<std::string, double>> state;
  RaceProgress race;  // after this round
};

}  // namespace signvote
