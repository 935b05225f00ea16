#pragma once
// What the trainer is tested with: a model whose gradient is known in closed form, a data set whose
// batches carry their key, a session that is a one-worker server in memory, and a device that
// queues. All of them write what happens into one list of events.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "common/bits.h"
#include "common/status.h"
#include "worker/train/trainer.h"

namespace signvote {

inline constexpr uint64_t kCoordinates = 1500;  // chunks of 512: 0..511, 512..1023, 1024..1499
inline constexpr uint64_t kLeaves[] = {0, 300, 700, 1100,
                                       kCoordinates};  // ranges that backward finishes, last first

inline Layout TestLayout() {
  return *Layout::Make({{.name = "model.embed_tokens.weight", .shape = {700}},
                        {.name = "b", .shape = {800}, .step_scale = 2.0f}});
}

// The target of minibatch (share, step, micro); gradients are x − target.
inline double Target(const BatchView& batch) {
  return static_cast<double>(batch.inputs[0] % 97) * 0.01;
}

class KeyDataset : public Dataset {
 public:
  explicit KeyDataset(uint64_t held_out = 6) : windows_(held_out) {}
  absl::Status TrainBatch(const BatchKey& key, Batch* batch) const override {
    if (!all.ok()) all_read.wait(false);
    batch->rows = batch->length = 1;
    batch->inputs = {
        static_cast<int64_t>(key.share.value() * 1000 + key.data_step.value() * 10 + key.micro)};
    batch->targets = batch->inputs;
    if (batch->inputs[0] >= fails_from) return absl::DataLossError("cut");
    return status;
  }
  uint64_t held_out_windows() const override { return windows_; }
  absl::Status HeldOut(uint64_t first, uint64_t count, Batch* batch) const override {
    batch->rows = count;
    batch->length = 1;
    batch->inputs.clear();
    for (uint64_t row = 0; row < count; ++row)
      batch->inputs.push_back(static_cast<int64_t>(first + row));
    batch->targets = batch->inputs;
    return absl::OkStatus();
  }
  absl::Status CheckAll(const std::stop_token&) const override {
    all_read = true;
    all_read.notify_all();
    return all;
  }
  std::string description() const override { return "keys"; }
  std::string target_unit() const override { return "sample"; }
  int64_t fails_from =
      std::numeric_limits<int64_t>::max();  // no minibatch from this one on can be had
  absl::Status status;
  absl::Status all;  // what the whole holds; unless OK no minibatch comes before it is read
  mutable std::atomic<bool> all_read{false};

 private:
  const uint64_t windows_;
};

class QuadraticModel : public Model {
 public:
  explicit QuadraticModel(std::vector<std::string>* events)
      : layout_(TestLayout()), events_(events) {
    for (Slot& slot : slots_) {
      slot.x.assign(kCoordinates, 0.0f);
      slot.g.assign(kCoordinates, 0.0f);
    }
    for (uint64_t i = 0; i < kCoordinates; ++i)
      slots_[0].x[i] = static_cast<float>(i % 7) * 0.1f + 1.0f;
    parameters_ = PointersInto(layout_, slots_[0].x.data());
    gradient_ = PointersInto<const float>(layout_, slots_[0].g.data());
    previous_gradient_ = PointersInto<const float>(layout_, slots_[1].g.data());
  }
  const Layout& layout() const override { return layout_; }
  const ModelConfig& config() const override { return config_; }
  std::string device() const override { return "cpu"; }
  TensorPointers parameters() override { return parameters_; }
  ConstTensorPointers gradient() const override { return gradient_; }
  const std::vector<float>& x() const { return slots_[0].x; }  // in the model's own order
  void* current_stream() const override { return nullptr; }
  absl::Status Keep(ReplicaSlot slot) override {
    Of(slot).x = slots_[0].x;
    ++kept[slot];
    return keep_status;
  }
  ConstTensorPointers previous_parameters() const override { return {}; }
  ConstTensorPointers previous_gradient() const override { return previous_gradient_; }
  absl::Status KeepGradient() override {
    kept_g_ = slots_[0].g;
    kept_gradient_ = PointersInto<const float>(layout_, kept_g_.data());
    ++gradients_kept;
    return absl::OkStatus();
  }
  ConstTensorPointers kept_gradient() const override { return kept_gradient_; }
  absl::Status BeginStep(ReplicaSlot slot) override {
    std::fill(Of(slot).g.begin(), Of(slot).g.end(), 0.0f);
    return absl::OkStatus();
  }
  absl::StatusOr<double> Forward(ReplicaSlot slot, const BatchView& batch) override {
    events_->push_back(std::string(slot == ReplicaSlot::kCurrent ? "forward " : "probe ") +
                       std::to_string(batch.inputs[0]));
    slot_ = slot;
    target_ = Target(batch);
    batch_ = batch;
    inputs_.assign(batch.inputs.begin(), batch.inputs.end());
    return next_loss != 0 ? next_loss : Loss(Of(slot).x, target_);
  }
  absl::Status Backward(float weight, const GradientReady& ready) override {
    // As a graph does, which refers to the batch's buffers until here.
    EXPECT_TRUE(
        std::equal(inputs_.begin(), inputs_.end(), batch_.inputs.begin(), batch_.inputs.end()))
        << "the batch of the Forward was changed before its Backward";
    ++batches_kept;
    Slot& slot = Of(slot_);
    for (size_t k = std::size(kLeaves) - 1; k-- > 0;) {
      for (uint64_t i = kLeaves[k]; i < kLeaves[k + 1]; ++i) {
        slot.g[i] += weight * (slot.x[i] - static_cast<float>(target_));
        if (poisoned == i) slot.g[i] = std::numeric_limits<float>::quiet_NaN();
      }
      events_->push_back("final " + std::to_string(kLeaves[k]));
      if (ready) ready(kLeaves[k], kLeaves[k + 1] - kLeaves[k]);
    }
    events_->push_back("backward ends");
    return absl::OkStatus();
  }
  absl::StatusOr<bool> BackwardRunning() override { return running_after_return; }
  absl::StatusOr<std::vector<double>> Evaluate(ReplicaSlot slot, const BatchView& batch) override {
    std::vector<double> losses;
    std::string windows;
    for (uint64_t row = 0; row < batch.rows; ++row) {
      windows += " " + std::to_string(batch.inputs[row]);
      losses.push_back(Loss(Of(slot).x, static_cast<double>(batch.inputs[row]) * 0.01));
    }
    events_->push_back((slot == ReplicaSlot::kCurrent ? "last held-out" : "kept held-out") +
                       windows);
    return losses;
  }
  static double Loss(const std::vector<float>& at, double target) {
    double sum = 0;
    for (float x : at) sum += 0.5 * (x - target) * (x - target);
    return sum / kCoordinates;
  }

  std::map<ReplicaSlot, int> kept;  // how often
  int gradients_kept = 0;
  int batches_kept = 0;  // passes whose batch was as it was in the end
  absl::Status keep_status;
  double next_loss = 0;                                      // instead of the real one
  uint64_t poisoned = std::numeric_limits<uint64_t>::max();  // this coordinate's gradient is NaN
  bool running_after_return = false;  // as a GPU does, on the work that Backward has queued

 private:
  struct Slot {
    std::vector<float> x, g;
  };
  Slot& Of(ReplicaSlot slot) { return slots_[static_cast<size_t>(slot)]; }
  const Layout layout_;
  const ModelConfig config_;
  std::vector<std::string>* const events_;
  Slot slots_[3];
  std::vector<float*> parameters_;
  std::vector<const float*> gradient_, previous_gradient_, kept_gradient_;
  std::vector<float> kept_g_;
  ReplicaSlot slot_ = ReplicaSlot::kCurrent;
  double target_ = 0;
  BatchView batch_;              // of the last Forward
  std::vector<int64_t> inputs_;  // what it held then
};

// A server for one worker: the verdict is its ballot.
class LoopSession : public Session {
 public:
  LoopSession(std::vector<std::string>* events, uint64_t rounds)
      : rounds_(rounds), events_(events) {}

  const std::string& name() const override { return name_; }
  absl::StatusOr<RunInfo> Join(const ModelDescription& model) override {
    if (drain_) return absl::CancelledError("asked to leave");
    description = model;
    std::vector<TensorSpec> tensors = model.tensors;
    for (TensorSpec& tensor : tensors) {
      if (tensor.name == "b") tensor.step_scale = 2.0f;
    }
    if (reversed) std::reverse(tensors.begin(), tensors.end());
    if (stranger) tensors[0].name = "z";
    RunInfo run;
    run.seed = 5;
    run.main_rounds = rounds_;
    run.layout = layout_ = *Layout::Make(tensors);
    run.plan = plan_ = ChunkPlan(run.layout.coordinates(), 512);
    run.ballot_plan = run.commit_plan = PayloadPlan(run.plan);
    run.direction.kind = DirectionKind::kSignSgd;
    run.probes = probe;
    run.keeps_gradients = keeps_gradients;
    run.needs_x0 = !kinds.empty();
    run.local_steps_max = local_steps.empty() ? 1 : 8;
    run.evaluate_every = evaluate_every;
    return run;
  }
  absl::Status Attach(ReplicaMemory* replica) override {
    replica_ = replica;
    before_ready.swap(*events_);
    events_->clear();
    if (on_attach) on_attach();
    if (replica->keeps_x0()) {
      std::vector<float> x0(kCoordinates);
      EXPECT_TRUE(replica->Read(0, x0).ok());
      EXPECT_TRUE(replica->WriteX0(0, x0).ok());
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::optional<RoundTicket>> NextRound() override {
    if (round_ >= rounds_ || drain_) return std::optional<RoundTicket>();
    if (std::exchange(fetched_, false)) {
      ++round_;
      moved_ = true;
    }
    waits_ = 0;
    if (jump_before == round_) {
      const float moved[] = {7.0f};
      EXPECT_TRUE(replica_->Write(0, moved).ok());
      ++round_;
      moved_ = true;
    }
    ballot_.assign(plan_.TotalBytes(), 0);
    RoundTicket ticket;
    ticket.round = Round(round_);
    ticket.data_step = DataStep(round_);
    ticket.share = Share(3);
    ticket.wanted = {ScalarKind::kPrevInner};
    if (probe) ticket.wanted.push_back(ScalarKind::kProbeL1);
    if (keeps_gradients) ticket.wanted.push_back(ScalarKind::kChangeL1);
    ticket.replica_moved = std::exchange(moved_, false);
    ticket.evaluate = evaluate_at.contains(round_);
    ticket.members = 1;
    if (const auto local = local_steps.find(round_); local != local_steps.end()) {
      ticket.local_steps = local->second.steps;
      ticket.start = local->second.start;
      ticket.eta_first = ticket.eta_last = kLocalEta;
    }
    return std::optional<RoundTicket>(ticket);
  }
  absl::Status SendChunk(ChunkIndex k, std::shared_ptr<const uint8_t> ballot) override {
    events_->push_back("chunk " + std::to_string(k.value()));
    std::copy(ballot.get(), ballot.get() + plan_.Bytes(k),
              ballot_.begin() + static_cast<int64_t>(plan_.ByteOffset(k)));
    return send_status;
  }
  absl::Status SendScalars(const BallotScalars& scalars) override {
    events_->push_back("scalars");
    all_scalars.push_back(scalars);
    return absl::OkStatus();
  }
  absl::Status Abstain(AbstainReason reason) override {
    events_->push_back(reason == AbstainReason::kNonFiniteLoss ? "abstain loss"
                                                               : "abstain gradient");
    return absl::OkStatus();
  }
  absl::StatusOr<CommitOutcome> WaitCommit() override {
    events_->push_back("wait");
    CommitOutcome outcome;
    ++waits_;
    if (fetched_instead == round_ && waits_ < 10) {
      // As a session whose connection was away too long: the state comes, and with it no commit.
      const float moved[] = {7.0f};
      EXPECT_TRUE(replica_->Write(0, moved).ok());
      outcome.next_round = Round(round_ + 1);
      outcome.contiguous = false;
      fetched_ = true;
      return outcome;
    }
    if (drain_without_commit) {
      drain_ = true;
      return outcome;
    }
    verdict_ = ballot_;
    xs.emplace_back(kCoordinates);
    EXPECT_TRUE(replica_->Read(0, xs.back()).ok());
    if (const auto other = kinds.find(round_); other != kinds.end()) outcome.kind = other->second;
    if (outcome.kind == CommitKind::kStep) {
      EXPECT_TRUE(replica_->ApplyStep(layout_, gamma, 0, kCoordinates, verdict_.data()).ok());
      outcome.verdict = verdict_.data();
      ++main_round_;
    } else if (outcome.kind == CommitKind::kRewind) {
      EXPECT_TRUE(replica_->Rewind(0, kCoordinates).ok());
      outcome.rewound = true;
    }
    outcome.main_round = main_round_;
    outcome.next_round = Round(++round_);
    outcome.run_done = round_ >= rounds_;
    outcome.commits = 1;
    outcome.contiguous = round_ != gap_after;
    outcome.stepsize = gamma;
    outcome.finished = round_ >= rounds_;
    return outcome;
  }
  absl::Status Leave(const std::string& reason) override {
    events_->push_back("leave " + reason);
    return absl::OkStatus();
  }
  void RequestDrain(const std::string&) override { drain_ = true; }
  std::string run_state() const override { return ""; }
  std::optional<Round> replica_round() const override {
    if (too_late || (lost_at_the_end && (drain_ || round_ >= rounds_))) return std::nullopt;
    return Round(round_ + caught_up);
  }
  bool finished() const override { return round_ >= rounds_; }
  bool drained() const override { return drain_; }
  SessionStats Stats() const override { return {}; }

  static constexpr float kLocalEta = 0.125f;
  struct Local {
    uint32_t steps = 1;
    BallotStart start = BallotStart::kReplica;
  };
  std::map<uint64_t, Local> local_steps;  // of rounds that are no ordinary vote

  std::vector<std::string> before_ready;  // events that the others need not wait for
  std::function<void()> on_attach;
  bool probe = false, keeps_gradients = false;
  bool reversed = false;                 // the run has the tensors in the reverse order
  bool stranger = false;                 // the run has a tensor that no model has
  std::map<uint64_t, CommitKind> kinds;  // of rounds that are no step
  std::set<uint64_t> evaluate_at;        // the rounds that ask for it
  uint64_t evaluate_every = 0;           // as the welcome says
  ModelDescription description;          // as it was joined with
  float gamma = 0.01f;
  bool too_late = false;         // the run has ended before the state came
  bool lost_at_the_end = false;  // a state transfer was never completed
  uint64_t caught_up = 0;        // commits that NextRound applied before it said that the run ended
  uint64_t fetched_instead =
      std::numeric_limits<uint64_t>::max();  // this round's WaitCommit ends with a fetched state
  bool drain_without_commit = false;
  uint64_t gap_after =
      std::numeric_limits<uint64_t>::max();  // the commit before this round came after a gap
  uint64_t jump_before =
      std::numeric_limits<uint64_t>::max();  // NextRound moves the replica past this round
  absl::Status send_status;
  std::vector<BallotScalars> all_scalars;
  std::vector<std::vector<float>> xs;  // the replica before each commit
  std::vector<uint8_t> verdict_;

 private:
  const std::string name_ = "w0";
  const uint64_t rounds_;
  std::vector<std::string>* const events_;
  Layout layout_;
  ReplicaMemory* replica_ = nullptr;
  ChunkPlan plan_;
  std::vector<uint8_t> ballot_;
  uint64_t round_ = 0, main_round_ = 0;
  bool moved_ = true;     // nothing is known before the first round
  bool fetched_ = false;  // the replica is one round ahead of round_
  int waits_ = 0;         // in this round
  bool drain_ = false;
};

// Packs like the CPU, but only when it is waited for, or when `ready` chunks are allowed to get
// done before.
class QueueingDevice : public HostDevice {
 public:
  explicit QueueingDevice(std::vector<std::string>* events) : events_(events) {}

  absl::StatusOr<std::unique_ptr<BallotPacker>> MakePacker(const Layout* layout, ChunkPlan plan,
                                                           const DirectionConfig& config) override {
    SIGNVOTE_RETURN_IF_ERROR(packer_status);
    ++packers;
    SIGNVOTE_ASSIGN_OR_RETURN(auto packer, HostDevice::MakePacker(layout, plan, config));
    return std::make_unique<Packer>(this, std::move(packer));
  }

  bool queues = false;
  int ready = 0;
  int packers = 0;  // that were made
  absl::Status packer_status, start_status, finish_status;

 private:
  class Packer : public BallotPacker {
   public:
    Packer(QueueingDevice* device, std::unique_ptr<BallotPacker> host)
        : device_(device), host_(std::move(host)) {}
    absl::Status Begin() override { return host_->Begin(); }
    absl::StatusOr<ChunkScalars> Sums(ConstTensorPointers g, const uint8_t* verdict) override {
      return host_->Sums(g, verdict);
    }
    absl::Status Start(ChunkIndex k, const Direction::ChunkInput& input, uint8_t* ballot) override {
      SIGNVOTE_RETURN_IF_ERROR(device_->start_status);
      if (!device_->queues) return host_->Start(k, input, ballot);
      device_->events_->push_back("start " + std::to_string(k.value()));
      queued_[k.value()] = [this, k, input, ballot] { return host_->Start(k, input, ballot); };
      return absl::OkStatus();
    }
    absl::StatusOr<bool> Ready(ChunkIndex) override {
      return !device_->queues || device_->ready-- > 0;
    }
    absl::Status Step(const Direction::StepInput& input) override { return host_->Step(input); }
    absl::Status SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) override {
      return host_->SaveState(plane, first, bytes);
    }
    absl::Status RestoreState(size_t plane, uint64_t first,
                              std::span<const std::byte> bytes) override {
      return host_->RestoreState(plane, first, bytes);
    }
    absl::Status Reset() override {
      device_->events_->push_back("reset");
      return host_->Reset();
    }
    absl::StatusOr<ChunkScalars> Finish(ChunkIndex k) override {
      SIGNVOTE_RETURN_IF_ERROR(device_->finish_status);
      if (const auto queued = queued_.find(k.value()); queued != queued_.end()) {
        SIGNVOTE_RETURN_IF_ERROR(queued->second());
        queued_.erase(queued);
      }
      return host_->Finish(k);
    }

   private:
    QueueingDevice* const device_;
    const std::unique_ptr<BallotPacker> host_;
    std::map<uint32_t, std::function<absl::Status()>> queued_;
  };
  std::vector<std::string>* const events_;
};

// A wanted scalar; nullopt: the worker could not tell.
inline std::optional<double> Told(const BallotScalars& scalars, size_t index) {
  if (index >= scalars.wanted.size() || std::isnan(scalars.wanted[index])) return std::nullopt;
  return scalars.wanted[index];
}
inline std::optional<double> PrevInner(const BallotScalars& scalars) { return Told(scalars, 0); }
inline std::optional<double> ProbeL1(const BallotScalars& scalars) { return Told(scalars, 1); }

struct Bench {
  explicit Bench(uint64_t rounds, TrainerOptions options = {.evaluate = Evaluate::kOff},
                 uint64_t windows = 6)
      : session(&events, rounds),
        model(&events),
        device(&events),
        data(windows),
        trainer(&session, &model, &device, &data, &clock, options) {
    trainer.set_on_round([this](const RoundReport& round) { rounds_seen.push_back(round); });
  }
  std::vector<std::string> events;
  FakeClock clock;
  LoopSession session;
  QuadraticModel model;
  QueueingDevice device;
  KeyDataset data;
  Trainer trainer;
  std::vector<RoundReport> rounds_seen;
};

}  // namespace signvote
