#include "tests/e2e/simulation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "common/apply.h"
#include "common/bits.h"
#include "common/status.h"
#include "server/stepsize/robust_mean.h"
#include "server/tally/tally.h"
#include "worker/train/batch_view.h"

namespace signvote {
namespace {

constexpr uint64_t kHeldOutTargets = 2048;

// What the server makes of the model's tensors.
absl::StatusOr<Layout> RunLayout(const Layout& model, const SimulationOptions& options) {
  std::vector<TensorSpec> tensors(model.tensors().begin(), model.tensors().end());
  for (TensorSpec& tensor : tensors)
    tensor.weight_decay = tensor.shape.size() >= 2 ? options.weight_decay : 0.0f;
  SIGNVOTE_RETURN_IF_ERROR(run::ApplyTensorRules(options.tensor_rules, &tensors));
  return Layout::Make(std::move(tensors));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Simulation>> Simulation::Create(const SimulationOptions& options) {
  auto simulation = std::make_unique<Simulation>();
  simulation->options_ = options;
  SIGNVOTE_ASSIGN_OR_RETURN(ModelConfig config,
                            LoadModelConfig(FileSystem::Posix(), options.model));
  config.parameter_divisor = options.parameter_divisor;
  DatasetOptions data = options.data;
  data.vocabulary = config.vocabulary;
  data.features = config.features;
  data.classes = config.classes;
  data.eval_targets = kHeldOutTargets;
  data.eval_length = data.length;
  if (config.kind == ModelKind::kMlp) data.format = DataFormat::kSynthetic;
  SIGNVOTE_ASSIGN_OR_RETURN(simulation->data_, OpenDataset(FileSystem::Posix(), data));
  SIGNVOTE_ASSIGN_OR_RETURN(simulation->model_, MakeTorchModel(config, options.model_options));
  SIGNVOTE_ASSIGN_OR_RETURN(
      simulation->rule_,
      MakeRule(options.rule, {.main_rounds_max = options.rounds, .direction = options.direction}));
  SIGNVOTE_ASSIGN_OR_RETURN(simulation->layout_, RunLayout(simulation->model_->layout(), options));
  const Layout& layout = simulation->layout_;
  const uint64_t chunk = options.chunk_coordinates != 0
                             ? options.chunk_coordinates
                             : ChunkPlan::DefaultChunkCoordinates(layout.coordinates());
  simulation->plan_ = ChunkPlan(layout.coordinates(), chunk);
  for (uint32_t share = 0; share < options.shares; ++share) {
    simulation->directions_.emplace_back(&layout, simulation->plan_, options.direction);
    SIGNVOTE_ASSIGN_OR_RETURN(
        std::unique_ptr<BallotSource> source,
        simulation->model_->MakeSource(&layout, options.direction, options.seed));
    if (source == nullptr) source = std::make_unique<GradientSource>();
    simulation->sources_.push_back(std::move(source));
  }
  return simulation;
}

absl::StatusOr<double> Simulation::Gradient(ReplicaSlot slot, Round round, Share share,
                                            uint64_t* targets) {
  SIGNVOTE_RETURN_IF_ERROR(model_->BeginStep(slot));
  double loss = 0;
  *targets = 0;
  for (uint32_t micro = 0; micro < options_.accumulate; ++micro) {
    Batch batch;
    SIGNVOTE_RETURN_IF_ERROR(data_->TrainBatch(
        {options_.seed, share, DataStep(round.value()), micro, options_.accumulate}, &batch));
    SIGNVOTE_ASSIGN_OR_RETURN(const double micro_loss, model_->Forward(slot, ViewOf(batch)));
    loss += micro_loss / options_.accumulate;
    *targets += batch.targets_count();
    SIGNVOTE_RETURN_IF_ERROR(
        model_->Backward(1.0f / static_cast<float>(options_.accumulate), nullptr));
  }
  return loss;
}

absl::StatusOr<WorkerScalars> Simulation::Ballot(Round round, Share share,
                                                 std::span<const ScalarKind> asked,
                                                 const std::vector<uint8_t>& prev_verdict,
                                                 std::vector<uint8_t>* ballot) {
  // No replica lies before the first one.
  const bool probe = !prev_verdict.empty() &&
                     std::find(asked.begin(), asked.end(), ScalarKind::kProbeL1) != asked.end();
  WorkerScalars scalars;
  if (probe) {
    SIGNVOTE_RETURN_IF_ERROR(
        Gradient(ReplicaSlot::kPrevious, round, share, &scalars.samples).status());
  }
  SIGNVOTE_ASSIGN_OR_RETURN(scalars.loss,
                            Gradient(ReplicaSlot::kCurrent, round, share, &scalars.samples));
  Direction& direction = directions_[share.value()];
  BallotSource& source = *sources_[share.value()];
  source.SetStepsize(gamma_);
  SIGNVOTE_RETURN_IF_ERROR(
      source.Begin({.round = round, .data_step = DataStep(round.value()), .share = share}));
  direction.Begin();
  const float clip = Clip(direction);
  source.SetClip(clip);
  ChunkScalars sum;
  for (uint32_t k = 0; k < plan_.chunks(); ++k) {
    const ChunkIndex chunk(k);
    SIGNVOTE_RETURN_IF_ERROR(
        source.MakeChunk(plan_.First(chunk), plan_.Count(chunk), model_->gradient()));
    const ChunkScalars part =
        direction.PackChunk(chunk,
                            {.g = model_->gradient(),
                             .u = source.u(),
                             .h = probe ? model_->previous_gradient() : ConstTensorPointers{},
                             .prev_verdict = prev_verdict.empty() ? nullptr : prev_verdict.data(),
                             .seed = options_.seed,
                             .round = round,
                             .share = share,
                             .clip = clip},
                            ballot->data() + plan_.ByteOffset(chunk));
    sum.g_l1 += part.g_l1;
    sum.g_l2_squared += part.g_l2_squared;
    sum.probe_l1 += part.probe_l1;
    sum.prev_inner += part.prev_inner;
    sum.nonfinite += part.nonfinite;
  }
  if (sum.nonfinite > 0) return absl::InternalError("the simulated gradient is not finite");
  scalars.g_l1 = sum.g_l1;
  scalars.g_l2_squared = sum.g_l2_squared;
  const double factor = ClipFactor(sum.g_l2_squared);
  for (const ScalarKind kind : asked) {
    double value = std::numeric_limits<double>::quiet_NaN();
    if (kind == ScalarKind::kProbeL1 && probe) value = factor * sum.probe_l1;
    if (kind == ScalarKind::kPrevInner && !prev_verdict.empty()) value = factor * sum.prev_inner;
    scalars.wanted.push_back(value);
  }
  const std::span<const float> lengths = source.displacement_mean();
  scalars.displacement_mean.assign(lengths.begin(), lengths.end());
  return scalars;
}

float Simulation::Clip(const Direction& direction) const {
  if (!options_.clip_norm.has_value() || !LengthMatters(options_.direction)) return 1.0f;
  return static_cast<float>(ClipFactor(direction.Sums(model_->gradient(), nullptr).g_l2_squared));
}

double Simulation::ClipFactor(double l2_squared) const {
  if (!options_.clip_norm.has_value()) return 1.0;
  const double norm = std::sqrt(l2_squared);
  return norm > *options_.clip_norm ? *options_.clip_norm / norm : 1.0;
}

std::vector<float> Simulation::ScalesOf(std::span<const WorkerScalars> workers) const {
  if (!options_.direction.error_feedback) return {};
  return RobustLengths(workers, layout_.tensors().size());
}

absl::Status Simulation::Run() {
  const std::vector<float> x0 = Parameters();
  const double x0_max_abs = MaxAbs(x0);
  std::vector<std::vector<uint8_t>> ballots(options_.shares,
                                            std::vector<uint8_t>(plan_.TotalBytes()));
  std::vector<uint8_t> verdict;
  for (uint64_t t = 0; t < options_.rounds; ++t) {
    const Round round(t);
    const RoundAhead ahead{.round = round, .data_step = DataStep(t), .main_rounds = t};
    SimulatedRound& record = rounds_.emplace_back();
    record.asked = rule_->Wanted(ahead);
    for (uint32_t share = 0; share < options_.shares; ++share) {
      const std::span<const ScalarKind> asked = record.asked;
      const size_t wanted = rule_->WantedOf(ahead, Share(share), asked.size());
      SIGNVOTE_ASSIGN_OR_RETURN(
          WorkerScalars scalars,
          Ballot(round, Share(share), asked.first(wanted), verdict, &ballots[share]));
      record.scalars.push_back(std::move(scalars));
    }
    const StepsizeDecision decision = rule_->Decide({.ahead = ahead,
                                                     .main_rounds_max = options_.rounds,
                                                     .gamma = gamma_,
                                                     .x0_max_abs = x0_max_abs,
                                                     .step_scale_max = layout_.step_scale_max(),
                                                     .asked = record.asked,
                                                     .workers = record.scalars});
    if (decision.kind != CommitKind::kStep || decision.rho != 1)
      return absl::UnimplementedError("the simulation knows only steps without rescaling");
    gamma_ = decision.gamma;
    for (const auto& source : sources_)
      SIGNVOTE_RETURN_IF_ERROR(source->Settle(BallotFate::kApplied));
    const std::vector<float> scales = ScalesOf(record.scalars);
    record.stepsize = scales.empty() ? gamma_ : 1.0f;
    SIGNVOTE_RETURN_IF_ERROR(model_->Keep(ReplicaSlot::kPrevious));
    // The whole model as one vote: chunks are a matter of transport.
    verdict.assign(plan_.TotalBytes(), 0);
    std::vector<const uint8_t*> pointers;
    for (const std::vector<uint8_t>& ballot : ballots) pointers.push_back(ballot.data());
    Tally({.ballots = pointers,
           .coordinates = plan_.coordinates(),
           .first_coordinate = 0,
           .seed = options_.seed,
           .round = round},
          verdict.data());
    const TensorPointers x = model_->parameters();
    for (size_t k = 0; k < x.size(); ++k) {
      const TensorSpec& tensor = layout_.tensors()[k];
      ApplyStep(layout_, {.gamma = record.stepsize, .decay_step = gamma_, .scales = scales},
                tensor.first, tensor.count, verdict.data(), 0, nullptr, x[k]);
    }
  }
  return absl::OkStatus();
}

std::vector<float> Simulation::Parameters() {
  std::vector<float> flat(layout_.coordinates());
  const TensorPointers x = model_->parameters();
  for (size_t k = 0; k < x.size(); ++k) {
    const TensorSpec& tensor = layout_.tensors()[k];
    std::copy_n(x[k], tensor.count, flat.begin() + static_cast<std::ptrdiff_t>(tensor.first));
  }
  return flat;
}

absl::StatusOr<double> Simulation::HeldOutLoss() {
  const uint64_t windows = data_->held_out_windows();
  double sum = 0;
  Batch batch;
  for (uint64_t k = 0; k < windows; ++k) {
    SIGNVOTE_RETURN_IF_ERROR(data_->HeldOut(k, 1, &batch));
    SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<double> loss,
                              model_->Evaluate(ReplicaSlot::kCurrent, ViewOf(batch)));
    sum += loss.front();
  }
  return sum / static_cast<double>(windows);
}

}  // namespace signvote
