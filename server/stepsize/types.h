#pragma once
// What a stepsize rule is shown and what it answers. Plain values; formulas and sources:
// docs/algorithms.md, "Stepsize".

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/ids.h"
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
  // What the round asked for, in that order; NaN: the worker cannot tell.
  std::vector<double> wanted;
};

// The value of `kind` in scalars that answer a round which asked for `asked`; nullopt when the round
// did not ask for it, or the worker could not tell.
std::optional<double> ScalarOf(const WorkerScalars& scalars, std::span<const ScalarKind> asked,
                               ScalarKind kind);

// Whether the scalars may be used: everything finite, no norm negative, as many wanted values as
// were asked for; of those NaN is allowed.
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
  std::span<const ScalarKind> asked;  // the scalars that the round wanted
  // of the counted workers whose scalars arrived in time; may be empty
  std::span<const WorkerScalars> workers;
};

// What a rule proposes for one round. The engine's Course turns it into a commit.
struct StepsizeDecision {
  CommitKind kind = CommitKind::kStep;
  float gamma = 0;  // ≥ 0, finite; none keeps the last one
  // > 0, finite; rescaling about x_0 before the step; 1: none, as with every other kind and every rule
  // that does without x_0
  float rho = 1;
  // The minibatch of the next round; nullopt: the one after this round's.
  std::optional<DataStep> next_data_step;
  bool main_round = true;  // counts towards T; only a step can
  bool run_done = false;   // this commit is the last one
  std::string reason;      // a few words for the log: "alias: eta=… num=…", "no scalars: kept"
  // The rule's state after this decision, by name, for logs and metrics (e.g. {"eta", 12.5}).
  std::vector<std::pair<std::string, double>> state;
};

}  // namespace signvote
