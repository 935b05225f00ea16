#pragma once
// The training losses of one trial, and what sets two trials apart. Trials begin at the same
// parameters and replay the same minibatches: the loss of one share at one step differs between them
// by what the stepsize did, and by little else.

#include <cstddef>
#include <cstdint>
#include <optional>
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
  uint64_t steps = 0;         // ≥ 1
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

  // Mean over the steps of the robust mean over the shares; nullopt: there is no loss.
  std::optional<double> Mean() const;
  // *this − other over the pairs (step, share) that both have: per step the robust mean over the shares,
  // then the mean over the steps from `first_step` on. nullopt: there is no such pair. So a worker that
  // came, went or was late costs its pairs, and neither trial.
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
  std::vector<Entry> entries_;  // by step, then by share; no pair twice
};

}  // namespace signvote
