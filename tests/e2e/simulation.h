#pragma once
// A whole run in one process and one thread, without session, server or trainer: what n workers,
// the vote and the stepsize rule compute, written down as plainly as possible. Real runs are
// compared with it bit by bit.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/run/tensor_rules.h"
#include "server/stepsize/rule_flags.h"
#include "server/stepsize/stepsize_rule.h"
#include "worker/data/dataset.h"
#include "worker/direction/direction.h"
#include "worker/models/model.h"
#include "worker/vote/ballot_source.h"

namespace signvote {

struct SimulationOptions {
  std::string model = "micro";
  float parameter_divisor = 1.0f;
  ModelOptions model_options;
  float weight_decay = 0.0f;  // of tensors of rank ≥ 2, as the server's --weight-decay
  std::vector<run::TensorRule> tensor_rules;  // as the server's --tensor-…
  DatasetOptions data;
  uint32_t accumulate = 1;
  uint32_t shares = 3;
  uint64_t rounds = 50;
  uint64_t seed = 1;               // the run's: coins and minibatches
  uint64_t chunk_coordinates = 0;  // 0: the default cut
  RuleFlags rule;
  DirectionConfig direction;
  std::optional<double> clip_norm;  // as the server's --clip norm --clip-norm
};

struct SimulatedRound {
  float stepsize = 0;                  // that the commit says
  std::vector<ScalarKind> asked;       // scalars that the rule wanted
  std::vector<WorkerScalars> scalars;  // by share
};

class Simulation {
 public:
  static absl::StatusOr<std::unique_ptr<Simulation>> Create(const SimulationOptions& options);

  // Every round, in order.
  absl::Status Run();

  const std::vector<SimulatedRound>& rounds() const { return rounds_; }
  // The run's: the model's tensors in the model's order, with scale and decay.
  const Layout& layout() const { return layout_; }
  std::vector<float> Parameters();  // [d], a copy in the layout's order
  // Mean loss over 2,048 held-out tokens, or samples, in windows as long as those of training.
  absl::StatusOr<double> HeldOutLoss();

 private:
  absl::StatusOr<WorkerScalars> Ballot(Round round, Share share, std::span<const ScalarKind> asked,
                                       const std::vector<uint8_t>& prev_verdict,
                                       std::vector<uint8_t>* ballot);
  absl::StatusOr<double> Gradient(ReplicaSlot slot, Round round, Share share, uint64_t* targets);
  // Of the gradient that the model has now, what it counts times in the direction.
  float Clip(const Direction& direction) const;
  // What one of this length counts times where gradients are compared, with any direction.
  double ClipFactor(double l2_squared) const;
  // The lengths at which the tensors move, of a commit that has any.
  std::vector<float> ScalesOf(std::span<const WorkerScalars> workers) const;

  SimulationOptions options_;
  std::unique_ptr<Model> model_;
  Layout layout_;
  std::unique_ptr<Dataset> data_;
  std::unique_ptr<StepsizeRule> rule_;
  ChunkPlan plan_;
  std::vector<Direction> directions_;                   // by share
  std::vector<std::unique_ptr<BallotSource>> sources_;  // by share
  float gamma_ = 0;                                     // of the last step; 0 before the first
  std::vector<SimulatedRound> rounds_;
};

}  // namespace signvote
