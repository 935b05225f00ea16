#pragma once
// The training losses of one trial, and what sets two trials apart. Trials begin at the same
// parameters and replay the same minibatches: the loss of one share at one step differs between them
// by what the stepsize did, and by little else.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/ids.h"
#include "server/stepsize/rule_state.h"
#include "server/stepsize/types.h"

namespace signvote {

// By how much one trial's loss lies above another's.
struct LossDifference {
  double mean = 0;            // over the steps that both have
  double standard_error = 0;  // of that mean; 0 with fewer than two steps
  double mean_step = 0;       // of those steps; the first of a trial is 0
  uint64_t steps = 0;         // ≥ 1
};

// A trial's own mean loss.
struct LossMean {
  double mean = 0;     // over the steps
  uint64_t steps = 0;  // that have a loss, ≥ 1
};

// Threads: thread-compatible.
class TrialLosses {
 public:
  // The losses of the workers whose scalars came in a round, `step` minibatches behind the trial's
  // first. REQUIRES: steps ascend.
  void Add(uint64_t step, const RuleInput& input);
  void Clear() { entries_.clear(); }
  // One behind the last step that has a loss.
  uint64_t end() const { return entries_.empty() ? 0 : entries_.back().step + 1; }

  // Whether some share has a loss at this step.
  bool Has(uint64_t step) const { return !At(step).empty(); }

  // Mean over the steps in [first_step, end_step) of the robust mean over the shares; nullopt: there is no
  // loss.
  std::optional<LossMean> Mean(uint64_t first_step = 0, uint64_t end_step = UINT64_MAX) const;
  // *this − other at one step, over the shares that both have there: the robust mean. nullopt: there is
  // none. So a worker that came, went or was late costs its pairs, and neither trial.
  std::optional<double> AboveAt(const TrialLosses& other, uint64_t step) const;
  // The mean of those over the steps from `first_step` on; nullopt: there is no pair.
  std::optional<LossDifference> Above(const TrialLosses& other, uint64_t first_step = 0) const;

  void Save(RuleStateWriter& writer) const;
  // Whatever `reader` has. DATA_LOSS: values that no trial can have.
  absl::Status Restore(RuleStateReader& reader);

 private:
  struct Entry {
    uint64_t step = 0;
    Share share;
    double loss = 0;
  };
  std::span<const Entry> At(uint64_t step) const;

  std::vector<Entry> entries_;  // by step, then by share; no pair twice
};

// LossDifference in one pass, so that a trial in progress costs each round no more than its own pairs.
// Threads: thread-compatible.
class DifferenceSums {
 public:
  void Add(uint64_t step, double above);
  // nullopt: nothing was added, or its sum is no number.
  std::optional<LossDifference> Get() const;

 private:
  uint64_t steps_ = 0;
  double step_sum_ = 0, mean_ = 0;
  double squares_ = 0;  // Σ(d − mean)²
};

}  // namespace signvote
