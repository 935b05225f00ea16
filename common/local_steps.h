#pragma once
// Local steps: a ballot of several minibatches (docs/algorithms/local_steps.md).

#include <cstdint>

namespace signvote {

// Where the minibatches of a ballot begin.
enum class StepsFrom : uint8_t {
  kReplica,   // at the replica
  kContinue,  // where the last ones ended, with their state; nobody votes in such a round
  kX0,        // at x0, with fresh state; likewise
};

// How a round's minibatches are taken. One is an ordinary vote, of which nothing else counts.
struct LocalSteps {
  uint32_t steps = 1;   // H, ≥ 1
  float eta_first = 0;  // inner stepsize of the first minibatch, ≥ 0
  float eta_last = 0;   // of the last one
  StepsFrom from = StepsFrom::kReplica;

  bool is_vote() const { return steps == 1 && from == StepsFrom::kReplica; }
  // Workers say their losses and send no ballot; the commit is of a kind that steps nowhere.
  bool is_silent() const { return from != StepsFrom::kReplica; }
  bool operator==(const LocalSteps&) const = default;
};

// η(h) = η_first + (η_last − η_first)·h/max(1, H − 1), in double, the product before the quotient,
// rounded once to fp32. REQUIRES: h < steps.
float InnerStepsize(const LocalSteps& local, uint32_t h);
// Σ_{h<H} η(h), added in double in order of h.
double InnerStepsizeSum(const LocalSteps& local);

}  // namespace signvote
