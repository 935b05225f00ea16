#include "worker/train/ballot_pass.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status.h"
#include "worker/direction/checks.h"
#include "worker/train/batch_view.h"
#include "worker/vote/local_steps.h"

namespace signvote {
namespace {

// Pointers by tensor of the model, in another order.
template <typename Pointer>
std::vector<Pointer> InOrder(std::span<const size_t> order, std::span<const Pointer> all) {
  std::vector<Pointer> pointers;
  pointers.reserve(order.size());
  for (const size_t k : order) pointers.push_back(all[k]);
  return pointers;
}

// `other`: why, where neither loss nor gradient were at fault.
void LogAbstention(const RoundTicket& ticket, const SentBallot& sent, std::string_view other) {
  if (sent.abstained == AbstainReason::kNonFiniteGradient) {
    LogWarning(
        "abstained: gradient is not finite",
        {{"round", ticket.round.value()}, {"coordinates", sent.scalars.nonfinite_coordinates}});
  }
  if (sent.abstained == AbstainReason::kOther) {
    LogInfo(absl::StrCat("abstained: ", ToAbsl(other)), {{"round", ticket.round.value()}});
  }
}

}  // namespace

ModelDescription DescriptionOf(const Model& model, std::optional<uint64_t> held_out_hash) {
  ModelDescription description;
  const std::span<const TensorSpec> tensors = model.layout().tensors();
  description.tensors.assign(tensors.begin(), tensors.end());
  description.config_json = ModelConfigJson(model.config());
  description.can_probe = true;
  description.held_out_hash = held_out_hash;
  return description;
}

BallotPass::BallotPass(Model* model, const Dataset* dataset, Clock* clock, uint32_t accumulate)
    : model_(model), dataset_(dataset), clock_(clock), accumulate_(accumulate) {
  SIGNVOTE_CHECK(accumulate_ > 0);
}

absl::Status BallotPass::Enter(const RunInfo& run) {
  std::map<std::string, size_t> by_name;
  for (size_t k = 0; k < model_->layout().tensors().size(); ++k)
    by_name[model_->layout().tensors()[k].name] = k;
  std::vector<size_t> model_tensor, run_tensor(by_name.size(), 0);
  for (const TensorSpec& tensor : run.layout.tensors()) {
    const auto found = by_name.find(tensor.name);
    if (found == by_name.end() || run.layout.tensors().size() != by_name.size() ||
        model_->layout().tensors()[found->second].shape != tensor.shape) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the run trains tensor \"", tensor.name,
          "\", which this model has not in that shape; give the --model that the run has"));
    }
    run_tensor[found->second] = model_tensor.size();
    model_tensor.push_back(found->second);
  }
  seed_ = run.seed;
  layout_ = run.layout;
  model_tensor_ = std::move(model_tensor);
  run_tensor_ = std::move(run_tensor);
  return absl::OkStatus();
}

std::vector<float*> BallotPass::parameters() const {
  return InOrder<float*>(model_tensor_, model_->parameters());
}

std::vector<const float*> BallotPass::InRunOrder(ConstTensorPointers of_model) const {
  return InOrder<const float*>(model_tensor_, of_model);
}

std::vector<float> BallotPass::InModelOrder(std::span<const float> of_run) const {
  std::vector<float> values(of_run.size());
  for (size_t k = 0; k < model_tensor_.size(); ++k) {
    const TensorSpec& from = layout_.tensors()[k];
    const std::span<const float> tensor = of_run.subspan(from.first, from.count);
    std::copy(tensor.begin(), tensor.end(),
              values.begin() +
                  static_cast<ptrdiff_t>(model_->layout().tensors()[model_tensor_[k]].first));
  }
  return values;
}

absl::StatusOr<std::unique_ptr<BallotSource>> BallotPass::MakeSource(const RunInfo& run) {
  if (run.local_steps_max > 1) {
    SIGNVOTE_RETURN_IF_ERROR(CheckStepDirection(run.direction));
    return std::make_unique<LocalStepSource>(parameters());
  }
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<BallotSource> source,
                            model_->MakeSource(&layout_, run.direction, run.seed));
  if (source == nullptr) source = std::make_unique<GradientSource>();
  return source;
}

absl::Status BallotPass::WarmUp() {
  SIGNVOTE_RETURN_IF_ERROR(dataset_->TrainBatch({.seed = seed_}, &batch_));
  SIGNVOTE_RETURN_IF_ERROR(model_->BeginStep(ReplicaSlot::kCurrent));
  SIGNVOTE_RETURN_IF_ERROR(model_->Forward(ReplicaSlot::kCurrent, ViewOf(batch_)).status());
  return model_->Backward(1.0f, nullptr);
}

absl::StatusOr<bool> BallotPass::GradientRuns() const {
  if (backward_called_) return true;
  return model_->BackwardRunning();
}

absl::StatusOr<BallotMade> BallotPass::Make(Voter* voter, const RoundTicket& ticket,
                                            ConstTensorPointers last_gradient,
                                            std::optional<HeldOutReport> held_out) {
  absl::StatusOr<BallotMade> made = MakeBallot(voter, ticket, last_gradient, std::move(held_out));
  // Whoever saves the replica of a run that failed finds it. What failed says more than a second failure.
  if (!made.ok()) (void)voter->EndSteps();
  return made;
}

absl::StatusOr<BallotMade> BallotPass::MakeBallot(Voter* voter, const RoundTicket& ticket,
                                                  ConstTensorPointers last_gradient,
                                                  std::optional<HeldOutReport> held_out) {
  SIGNVOTE_RETURN_IF_ERROR(voter->Begin(ticket));
  if (voter->takes_steps()) return LocalSteps(voter, ticket, std::move(held_out));
  bool probed = false;
  if (voter->wants_probe()) {
    SIGNVOTE_ASSIGN_OR_RETURN(probed, Probe(ticket));
    if (probed) {
      SIGNVOTE_RETURN_IF_ERROR(
          voter->SetProbe(InOrder<const float*>(model_tensor_, model_->previous_gradient())));
    }
  }
  if (voter->wants_change()) {
    SIGNVOTE_RETURN_IF_ERROR(
        voter->SetLastGradient(InOrder<const float*>(model_tensor_, last_gradient)));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(BallotMade made, OrdinaryBallot(voter, ticket, std::move(held_out)));
  made.probed = probed;
  return made;
}

absl::StatusOr<bool> BallotPass::Probe(const RoundTicket& ticket) {
  SIGNVOTE_RETURN_IF_ERROR(model_->BeginStep(ReplicaSlot::kPrevious));
  for (uint32_t micro = 0; micro < accumulate_; ++micro) {
    SIGNVOTE_RETURN_IF_ERROR(
        dataset_->TrainBatch({seed_, ticket.share, ticket.data_step, micro, accumulate_}, &batch_));
    SIGNVOTE_ASSIGN_OR_RETURN(const double loss,
                              model_->Forward(ReplicaSlot::kPrevious, ViewOf(batch_)));
    // Without a finite h there is no probe; the vote itself does not depend on it.
    if (!std::isfinite(loss)) return false;
    SIGNVOTE_RETURN_IF_ERROR(model_->Backward(1.0f / static_cast<float>(accumulate_), nullptr));
  }
  return true;
}

absl::StatusOr<BallotMade> BallotPass::OrdinaryBallot(Voter* voter, const RoundTicket& ticket,
                                                      std::optional<HeldOutReport> held_out) {
  BallotMade made;
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<double> loss,
                            Minibatch(voter, ticket, ticket.data_step, &made));
  if (!loss.has_value()) return made;
  made.backward_done = clock_->Now();
  // What a GPU has queued is sent as it gets done; the last chunk is packed right behind the end of
  // the backward pass.
  SIGNVOTE_ASSIGN_OR_RETURN(made.sent, voter->Finish(*loss, made.targets, std::move(held_out)));
  if (made.sent.queue_done.has_value()) made.backward_done = made.sent.queue_done;
  LogAbstention(ticket, made.sent,
                "the last step's length is not known here until the next commit");
  return made;
}

absl::StatusOr<BallotMade> BallotPass::LocalSteps(Voter* voter, const RoundTicket& ticket,
                                                  std::optional<HeldOutReport> held_out) {
  BallotMade made;
  while (voter->wants_gradient()) {
    const uint64_t before = made.targets;
    SIGNVOTE_ASSIGN_OR_RETURN(
        const std::optional<double> loss,
        Minibatch(voter, ticket, DataStep(ticket.data_step.value() + made.minibatches), &made));
    if (!loss.has_value()) return made;
    SIGNVOTE_RETURN_IF_ERROR(voter->EndGradient(*loss, made.targets - before));
  }
  made.backward_done = clock_->Now();
  SIGNVOTE_ASSIGN_OR_RETURN(made.sent, voter->FinishSteps(std::move(held_out)));
  LogAbstention(ticket, made.sent,
                "this worker has not taken the steps from which the round goes on");
  return made;
}

absl::StatusOr<std::optional<double>> BallotPass::Minibatch(Voter* voter, const RoundTicket& ticket,
                                                            DataStep step, BallotMade* made) {
  SIGNVOTE_RETURN_IF_ERROR(
      voter->SetGradient(InOrder<const float*>(model_tensor_, model_->gradient())));
  SIGNVOTE_RETURN_IF_ERROR(model_->BeginStep(ReplicaSlot::kCurrent));
  const float weight = 1.0f / static_cast<float>(accumulate_);
  double loss = 0;
  for (uint32_t micro = 0; micro < accumulate_; ++micro) {
    SIGNVOTE_RETURN_IF_ERROR(
        dataset_->TrainBatch({seed_, ticket.share, step, micro, accumulate_}, &batch_));
    SIGNVOTE_ASSIGN_OR_RETURN(const double micro_loss,
                              model_->Forward(ReplicaSlot::kCurrent, ViewOf(batch_)));
    loss += micro_loss / accumulate_;
    made->targets += batch_.targets_count();
    // Before the first chunk: a chunk that was sent stands.
    if (!std::isfinite(loss)) {
      LogWarning("abstained: loss is not finite",
                 {{"round", ticket.round.value()}, {"loss", loss}});
      SIGNVOTE_RETURN_IF_ERROR(voter->Abstain(AbstainReason::kNonFiniteLoss).status());
      made->sent.abstained = AbstainReason::kNonFiniteLoss;
      made->sent.scalars.loss = loss;
      return std::optional<double>();
    }
    const bool last = micro + 1 == accumulate_;
    absl::Status packed;  // first failure of packing or sending a chunk
    Model::GradientReady ready;
    if (last) {
      ready = [&](uint64_t first, uint64_t count) {
        if (packed.ok()) packed = Ready(voter, first, count);
      };
    }
    backward_called_ = last;
    const absl::Status status = model_->Backward(weight, ready);
    backward_called_ = false;
    SIGNVOTE_RETURN_IF_ERROR(status);
    SIGNVOTE_RETURN_IF_ERROR(packed);
  }
  ++made->minibatches;
  return std::optional<double>(loss);
}

// The model's coordinates are not the run's: each tensor has its own place there.
absl::Status BallotPass::Ready(Voter* voter, uint64_t first, uint64_t count) {
  absl::Status status;
  std::vector<TensorRange> ranges;
  ForEachTensorRange(model_->layout(), first, count,
                     [&](const TensorRange& range) { ranges.push_back(range); });
  // From the back: where the orders are the same, that of the backward pass.
  for (size_t k = ranges.size(); k-- > 0 && status.ok();) {
    const TensorSpec& tensor = layout_.tensors()[run_tensor_[ranges[k].tensor]];
    status = voter->GradientReady(tensor.first + ranges[k].offset, ranges[k].count);
  }
  return status;
}

}  // namespace signvote
