#pragma once
// A whole run in plain double and one function: n workers' gradients, the vote, what the commits do.
// Nothing of the product but the stepsize rule, so that a rule's promises are held against something
// that a reader can check by eye.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote::toy {

// A loss with minibatches.
class Problem {
 public:
  virtual ~Problem() = default;
  virtual std::vector<double> Start() const = 0;
  // The mean loss of minibatch (share, step) at x, and its gradient.
  virtual double Gradient(const std::vector<double>& x, Share share, DataStep step,
                          std::vector<double>* g) const = 0;
  // Of all the data.
  virtual double Loss(const std::vector<double>& x) const = 0;
};

// ½ Σ h_i (x_i − t_i)², with curvatures from 1 to 100 and no noise.
std::unique_ptr<Problem> Quadratic();
// Logistic regression with features whose scales are a factor of 30 apart; minibatches of eight.
std::unique_ptr<Problem> Logistic();

struct Options {
  uint32_t workers = 4;
  uint64_t main_rounds = 600;
  double momentum = 0;  // 0: raw signs; else Signum's β
  uint64_t rounds_max = 100000;
  // Whether the worker of this share takes part in the round.
  std::function<bool(Round, Share)> present;
  // What it sends, changed before the rule sees it.
  std::function<void(Round, Share, WorkerScalars*)> tamper;
  // Where a round closes without a verdict.
  std::function<bool(Round)> without_verdict;
  // The minibatch at which nobody has a finite loss.
  std::function<bool(DataStep)> nonfinite;
  // Before every round the rule is replaced by this one, restored from its bytes.
  std::function<std::unique_ptr<StepsizeRule>()> replace;
};

struct Result {
  std::vector<double> x;
  double loss = 0;                          // of all the data, at x
  std::vector<StepsizeDecision> decisions;  // by round
  std::vector<DataStep> data_steps;         // likewise
  uint64_t race_rounds = 0;                 // rounds that were no main rounds
  absl::Status status;                      // of the rule
};

Result Train(const Problem& problem, StepsizeRule* rule, const Options& options);

// The loss after the best of the fixed stepsizes 10^(k/4), linear to 0, and that stepsize.
struct Best {
  double loss = 0, stepsize = 0;
};
Best BestFixed(const Problem& problem, const Options& options);

}  // namespace signvote::toy
