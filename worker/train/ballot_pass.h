#pragma once
// One ballot: the passes of a model over the minibatches that a ticket names, handed to a Voter while
// the backward pass still runs. A Trainer makes one worker's with it; the lab those of several virtual
// workers, one after the other, on one model.
//
//   [probe: h = ∇f(x_{t−1}) on the same minibatch]  →  forward  →  backward, chunk by chunk  →  scalars
//
// The probe runs first so that the main pass streams. docs/architecture.md, "One ballot".
//
// A ballot of local steps takes minibatches data_step, data_step + 1, … of the same share, each with a
// forward and a backward pass at the parameters that the one before has moved, and sends at the end.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/layout.h"
#include "worker/data/dataset.h"
#include "worker/models/model.h"
#include "worker/vote/ballot_source.h"
#include "worker/vote/voter.h"

namespace signvote {

// A ballot that was handed over, or an abstention.
struct BallotMade {
  SentBallot sent;  // `abstained` also where the loss was not finite; then only its loss is set
  bool probed = false;
  uint32_t minibatches = 0;           // whose gradients were taken
  uint64_t targets = 0;               // tokens or samples behind them
  std::optional<Time> backward_done;  // nullopt: the loss was not finite
};

// What a worker with this model says of it as it joins. `held_out_hash`: of the windows that it can
// measure; nullopt: none.
ModelDescription DescriptionOf(const Model& model, std::optional<uint64_t> held_out_hash);

// Ownership: owns neither model nor data set, which must outlive it; nor the voters.
// Threads:   one thread at a time.
// Failure:   what the data, the model or the voter refuse is returned as it is.
class BallotPass {
 public:
  // REQUIRES: accumulate > 0: micro-batches per ballot; the gradient is that of their mean.
  BallotPass(Model* model, const Dataset* dataset, Clock* clock, uint32_t accumulate);

  // Puts the model's tensors in the run's order. FAILED_PRECONDITION: they are not the run's.
  // Before everything below.
  absl::Status Enter(const RunInfo& run);
  // The model's parameters, by tensor of the run's layout.
  std::vector<float*> parameters() const;
  // Pointers by tensor of the model, by tensor of the run's layout.
  std::vector<const float*> InRunOrder(ConstTensorPointers of_model) const;
  // Values by coordinate of the run's layout, by coordinate of the model's.
  std::vector<float> InModelOrder(std::span<const float> of_run) const;
  // What makes the ballots of the run, whose packer is of the device where the parameters lie.
  // UNIMPLEMENTED: its direction and its local steps do not go together; as Model::MakeSource().
  absl::StatusOr<std::unique_ptr<BallotSource>> MakeSource(const RunInfo& run);
  // Throws one pass away, at whatever parameters the model has now: nobody takes its result.
  absl::Status WarmUp();

  // The ticket's, at the model's parameters. `last_gradient`: what this worker's last ballot left in
  // the model's gradient, by tensor of the model; looked at where the voter wants the change since.
  // The model's parameters are the replica on return, also when it failed.
  // REQUIRES: voter->Begin(ticket) has not been called.
  absl::StatusOr<BallotMade> Make(Voter* voter, const RoundTicket& ticket,
                                  ConstTensorPointers last_gradient,
                                  std::optional<HeldOutReport> held_out);
  // For VoterOptions::gradient_runs.
  absl::StatusOr<bool> GradientRuns() const;

 private:
  absl::StatusOr<bool> Probe(const RoundTicket& ticket);
  absl::StatusOr<BallotMade> MakeBallot(Voter* voter, const RoundTicket& ticket,
                                        ConstTensorPointers last_gradient,
                                        std::optional<HeldOutReport> held_out);
  absl::StatusOr<BallotMade> OrdinaryBallot(Voter* voter, const RoundTicket& ticket,
                                            std::optional<HeldOutReport> held_out);
  absl::StatusOr<BallotMade> LocalSteps(Voter* voter, const RoundTicket& ticket,
                                        std::optional<HeldOutReport> held_out);
  // The gradient of one minibatch, coordinate by coordinate to the voter; its loss. nullopt: it is not
  // finite, and the voter has abstained.
  absl::StatusOr<std::optional<double>> Minibatch(Voter* voter, const RoundTicket& ticket,
                                                  DataStep step, BallotMade* made);
  absl::Status Ready(Voter* voter, uint64_t first, uint64_t count);

  // Constant after construction.
  Model* const model_;
  const Dataset* const dataset_;
  Clock* const clock_;
  const uint32_t accumulate_;

  // Constant after Enter().
  uint64_t seed_ = 0;
  Layout layout_;                     // the run's
  std::vector<size_t> model_tensor_;  // of each tensor of the run's layout, in the model's
  std::vector<size_t> run_tensor_;    // the reverse

  Batch batch_;
  // Model::Backward has been called for the last micro-batch and has not returned.
  bool backward_called_ = false;
};

}  // namespace signvote
