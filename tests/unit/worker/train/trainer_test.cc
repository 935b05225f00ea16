// Goal:   the order of things in a round: probe, forward, backward with chunks leaving, scalars,
//         commit.
// Method: a model whose gradient is known in closed form, a data set whose batches carry their key,
// and a session that
//         is one-worker server in memory. All of them write what happens into one list of events.
#include "worker/train/trainer.h"

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/apply.h"
#include "common/bits.h"
#include "common/checksum.h"
#include "common/status.h"

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kCoordinates = 1500;  // chunks of 512: 0..511, 512..1023, 1024..1499
constexpr uint64_t kLeaves[] = {0, 300, 700, 1100,
                                kCoordinates};  // ranges that backward finishes, last first

Layout TestLayout() {
  return *Layout::Make(
      {{.name = "a", .shape = {700}}, {.name = "b", .shape = {800}, .step_scale = 2.0f}});
}

// The target of minibatch (share, step, micro); gradients are x − target.
double Target(const BatchView& batch) { return static_cast<double>(batch.inputs[0] % 97) * 0.01; }

class KeyDataset : public Dataset {
 public:
  absl::Status TrainBatch(const BatchKey& key, Batch* batch) const override {
    batch->rows = batch->length = 1;
    batch->inputs = {
        static_cast<int64_t>(key.share.value() * 1000 + key.data_step.value() * 10 + key.micro)};
    batch->targets = batch->inputs;
    return status;
  }
  absl::Status HeldOutBatch(uint64_t index, Batch* batch) const override {
    batch->rows = 3;
    batch->length = 1;
    batch->inputs.clear();
    for (uint64_t row = 0; row < 3; ++row)
      batch->inputs.push_back(static_cast<int64_t>(10 * index + row));
    batch->targets = batch->inputs;
    return absl::OkStatus();
  }
  std::string description() const override { return "keys"; }
  std::string target_unit() const override { return "sample"; }
  absl::Status status;
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
    kept_previous += slot == ReplicaSlot::kPrevious ? 1 : 0;
    return absl::OkStatus();
  }
  ConstTensorPointers previous_parameters() const override { return {}; }
  ConstTensorPointers previous_gradient() const override { return previous_gradient_; }
  absl::Status BeginStep(ReplicaSlot slot) override {
    std::fill(Of(slot).g.begin(), Of(slot).g.end(), 0.0f);
    return absl::OkStatus();
  }
  absl::StatusOr<double> Forward(ReplicaSlot slot, const BatchView& batch) override {
    events_->push_back(std::string(slot == ReplicaSlot::kCurrent ? "forward " : "probe ") +
                       std::to_string(batch.inputs[0]));
    slot_ = slot;
    target_ = Target(batch);
    return next_loss != 0 ? next_loss : Loss(Of(slot).x, target_);
  }
  absl::Status Backward(float weight, const GradientReady& ready) override {
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
  absl::StatusOr<double> Evaluate(ReplicaSlot slot, const BatchView& batch) override {
    double sum = 0;
    for (uint64_t row = 0; row < batch.rows; ++row) {
      events_->push_back(std::string(slot == ReplicaSlot::kCurrent ? "last" : "kept") +
                         " held-out " + std::to_string(batch.inputs[row]));
      sum += Loss(Of(slot).x, static_cast<double>(batch.inputs[row]) * 0.01);
    }
    return sum / static_cast<double>(batch.rows);
  }
  static double Loss(const std::vector<float>& at, double target) {
    double sum = 0;
    for (float x : at) sum += 0.5 * (x - target) * (x - target);
    return sum / kCoordinates;
  }

  int kept_previous = 0;
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
  std::vector<const float*> gradient_, previous_gradient_;
  ReplicaSlot slot_ = ReplicaSlot::kCurrent;
  double target_ = 0;
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
    run.direction.kind = DirectionKind::kSignSgd;
    run.probes = probe;
    run.needs_x0 = !kinds.empty();
    return run;
  }
  absl::Status Attach(ReplicaMemory* replica) override {
    replica_ = replica;
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
    ticket.replica_moved = std::exchange(moved_, false);
    ticket.evaluate = evaluate_at == round_;
    ticket.members = 1;
    return std::optional<RoundTicket>(ticket);
  }
  absl::Status SendChunk(ChunkIndex k, const uint8_t* ballot) override {
    events_->push_back("chunk " + std::to_string(k.value()));
    std::copy(ballot, ballot + plan_.Bytes(k),
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
  std::optional<Round> replica_round() const override {
    if (too_late || (lost_at_the_end && (drain_ || round_ >= rounds_))) return std::nullopt;
    return Round(round_ + caught_up);
  }
  bool finished() const override { return round_ >= rounds_; }
  bool drained() const override { return drain_; }
  SessionStats Stats() const override { return {}; }

  bool probe = false;
  bool reversed = false;                 // the run has the tensors in the reverse order
  bool stranger = false;                 // the run has a tensor that no model has
  std::map<uint64_t, CommitKind> kinds;  // of rounds that are no step
  uint64_t evaluate_at = std::numeric_limits<uint64_t>::max();  // the round that asks for it
  ModelDescription description;                                 // as it was joined with
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
    SIGNVOTE_ASSIGN_OR_RETURN(auto packer, HostDevice::MakePacker(layout, plan, config));
    return std::make_unique<Packer>(this, std::move(packer));
  }

  bool queues = false;
  int ready = 0;
  absl::Status start_status, finish_status;

 private:
  class Packer : public BallotPacker {
   public:
    Packer(QueueingDevice* device, std::unique_ptr<BallotPacker> host)
        : device_(device), host_(std::move(host)) {}
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
std::optional<double> Told(const BallotScalars& scalars, size_t index) {
  if (index >= scalars.wanted.size() || std::isnan(scalars.wanted[index])) return std::nullopt;
  return scalars.wanted[index];
}
std::optional<double> PrevInner(const BallotScalars& scalars) { return Told(scalars, 0); }
std::optional<double> ProbeL1(const BallotScalars& scalars) { return Told(scalars, 1); }

struct Bench {
  explicit Bench(uint64_t rounds, TrainerOptions options = {.eval_every = 0, .eval_batches = 0})
      : session(&events, rounds),
        model(&events),
        device(&events),
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

TEST(TrainerTest, EachChunkLeavesAsSoonAsItsLastCoordinateIsFinalAndBeforeBackwardEnds) {
  Bench bench(1);
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_THAT(bench.events, ElementsAre("forward 3000", "final 1100", "final 700", "chunk 2",
                                        "final 300", "chunk 1", "final 0", "chunk 0",
                                        "backward ends", "scalars", "wait", "leave finished"));
}

TEST(TrainerTest, ADeviceThatQueuesHasItsChunksSentAsTheyGetDone) {
  for (const bool still_running : {true, false}) {
    Bench bench(1);
    bench.device.queues = true;
    bench.device.ready = 1;  // chunk 2 gets done while the host still queues the backward pass
    bench.model.running_after_return = still_running;
    ASSERT_TRUE(bench.trainer.Run().ok());
    EXPECT_THAT(bench.events,
                ElementsAre("forward 3000", "final 1100", "final 700", "start 2", "chunk 2",
                            "final 300", "start 1", "final 0", "start 0", "backward ends",
                            "chunk 1", "chunk 0", "scalars", "wait", "leave finished"));
    EXPECT_TRUE(bench.rounds_seen.at(0).first_chunk_overlapped);
  }
}

TEST(TrainerTest, AChunkOverlapsWhenItLeavesBeforeTheDeviceHasEndedItsBackwardPass) {
  for (const bool still_running : {true, false}) {
    Bench bench(1);
    bench.device.queues = true;  // nothing is done when Backward returns
    bench.model.running_after_return = still_running;
    ASSERT_TRUE(bench.trainer.Run().ok());
    EXPECT_EQ(std::count(bench.events.begin(), bench.events.end(), "chunk 2"), 1);
    EXPECT_EQ(bench.rounds_seen.at(0).first_chunk_overlapped, still_running);
  }
}

TEST(TrainerTest, AQueuedNonFiniteGradientWithdrawsTheChunksNotYetSent) {
  Bench bench(1);
  bench.device.queues = true;
  bench.model.poisoned = 600;  // chunk 1
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_THAT(bench.events,
              ElementsAre("forward 3000", "final 1100", "final 700", "start 2", "final 300",
                          "start 1", "final 0", "start 0", "backward ends", "chunk 2",
                          "abstain gradient", "wait", "leave finished"));
}

TEST(TrainerTest, TheBallotIsTheSignOfTheGradientOfTheTicketsMinibatch) {
  Bench bench(1);
  ASSERT_TRUE(bench.trainer.Run().ok());
  const double target = static_cast<double>(3000 % 97) * 0.01;
  double l1 = 0;
  for (uint64_t i = 0; i < kCoordinates; ++i) {
    const double g = bench.session.xs[0][i] - target;
    l1 += std::abs(g);
    EXPECT_EQ(GetBit(bench.session.verdict_.data(), i), g > 0) << i;
  }
  ASSERT_EQ(bench.session.all_scalars.size(), 1u);
  const BallotScalars& scalars = bench.session.all_scalars[0];
  EXPECT_NEAR(scalars.g_l1, l1, 1e-3);
  EXPECT_EQ(scalars.samples, 1u);
  EXPECT_FALSE(ProbeL1(scalars).has_value());
  EXPECT_FALSE(PrevInner(scalars).has_value());
}

TEST(TrainerTest, TheProbeRunsFirstOnTheSameMinibatchAtThePreviousReplica) {
  Bench bench(3);
  bench.session.probe = true;
  ASSERT_TRUE(bench.trainer.Run().ok());
  // Round 0 has no previous replica.
  EXPECT_THAT(std::vector<std::string>(bench.events.begin(), bench.events.begin() + 2),
              ElementsAre("forward 3000", "final 1100"));
  const auto probe = std::find(bench.events.begin(), bench.events.end(), "probe 3010");
  const auto forward = std::find(bench.events.begin(), bench.events.end(), "forward 3010");
  ASSERT_NE(probe, bench.events.end());
  EXPECT_LT(probe, forward);
  const auto& scalars = bench.session.all_scalars;
  ASSERT_EQ(scalars.size(), 3u);
  EXPECT_FALSE(ProbeL1(scalars[0]).has_value());
  for (size_t t = 1; t < 3; ++t) {
    // g − h = x_t − x_{t−1} for this model: γ per coordinate, twice that in tensor b.
    ASSERT_TRUE(ProbeL1(scalars[t]).has_value());
    EXPECT_NEAR(*ProbeL1(scalars[t]), 0.01 * 700 + 0.02 * 800, 1e-3);
    double inner = 0;
    const double target = static_cast<double>((3000 + 10 * t) % 97) * 0.01;
    for (uint64_t i = 0; i < kCoordinates; ++i) {
      const double b =
          bench.session.xs[t][i] < bench.session.xs[t - 1][i] ? 1.0 : -1.0;  // x moved against b
      inner += (i < 700 ? 1.0 : 2.0) * b * (bench.session.xs[t][i] - target);
    }
    ASSERT_TRUE(PrevInner(scalars[t]).has_value());
    EXPECT_NEAR(*PrevInner(scalars[t]), inner, 1e-3);
  }
}

TEST(TrainerTest, AfterAGapOrAStateTransferThereIsNeitherProbeNorPreviousVerdict) {
  for (const bool in_next_round : {false, true}) {
    Bench bench(4);
    bench.session.probe = true;
    if (in_next_round) {
      bench.session.jump_before = 2;  // round 2 is skipped
    } else {
      bench.session.gap_after = 2;
    }
    ASSERT_TRUE(bench.trainer.Run().ok());
    std::map<uint64_t, bool> probed;
    for (const RoundReport& round : bench.rounds_seen) {
      probed[round.round.value()] = round.probe_l1.has_value();
      EXPECT_EQ(round.prev_inner.has_value(), round.probe_l1.has_value());
    }
    if (in_next_round) {
      EXPECT_EQ(probed, (std::map<uint64_t, bool>{{0, false}, {1, true}, {3, false}}));
    } else {
      EXPECT_EQ(probed, (std::map<uint64_t, bool>{{0, false}, {1, true}, {2, false}, {3, true}}));
    }
  }
}

// The first worker's model gives the run its order; another's may have it otherwise.
TEST(TrainerTest, TheRunsOrderOfTensorsIsAdopted) {
  Bench bench(2);
  bench.session.reversed = true;
  bench.session.probe = true;
  const std::vector<float> before = bench.model.x();
  ASSERT_TRUE(bench.trainer.Run().ok());
  const RunInfo& run = bench.trainer.report().run;
  ASSERT_EQ(run.layout.tensors()[0].name, "b");
  // Coordinate i of the run is i + 700 of the model in b, i − 800 in a.
  const auto of_model = [](uint64_t i) { return i < 800 ? i + 700 : i - 800; };
  for (uint64_t i = 0; i < kCoordinates; ++i)
    ASSERT_EQ(bench.session.xs[0][i], before[of_model(i)]) << i;
  std::vector<float> x(kCoordinates);
  ASSERT_TRUE(bench.trainer.replica()->Read(0, x).ok());
  for (uint64_t i = 0; i < kCoordinates; ++i) ASSERT_EQ(x[i], bench.model.x()[of_model(i)]) << i;
  const double target = static_cast<double>(3010 % 97) * 0.01;
  for (uint64_t i = 0; i < kCoordinates; ++i) {
    const float g = bench.session.xs[1][i] - static_cast<float>(target);
    ASSERT_EQ(GetBit(bench.session.verdict_.data(), i), g > 0) << i;
  }
  EXPECT_NEAR(*ProbeL1(bench.session.all_scalars[1]), 0.01 * 700 + 0.02 * 800, 1e-3);
  // Chunk 0 is final once all of its coordinates are, though they come last in the model's order.
  const auto first = std::find(bench.events.begin(), bench.events.end(), "chunk 1");
  EXPECT_NE(first, bench.events.end());
}

TEST(TrainerTest, ATensorThatTheModelHasNotEndsTheRunWithItsName) {
  Bench bench(1);
  bench.session.stranger = true;
  const absl::Status status = bench.trainer.Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tensor \"z\""));
}

TEST(TrainerTest, ItJoinsWithWhatTheModelIsAndCan) {
  Bench bench(1, {.eval_every = 0, .eval_batches = 2});
  ASSERT_TRUE(bench.trainer.Run().ok());
  const ModelDescription& joined = bench.session.description;
  ASSERT_EQ(joined.tensors.size(), 2u);
  EXPECT_EQ(joined.tensors[1].name, "b");
  EXPECT_EQ(joined.config_json, ModelConfigJson(bench.model.config()));
  EXPECT_TRUE(joined.can_probe);
  ASSERT_TRUE(joined.held_out_hash.has_value());
  Bench more(1, {.eval_every = 0, .eval_batches = 3});
  ASSERT_TRUE(more.trainer.Run().ok());
  EXPECT_NE(more.session.description.held_out_hash, joined.held_out_hash);
  Bench none(1);
  ASSERT_TRUE(none.trainer.Run().ok());
  EXPECT_FALSE(none.session.description.held_out_hash.has_value());
}

TEST(TrainerTest, ACommitOfKindNoneMovesNothingAndEndsNoProbeButItsOwn) {
  Bench bench(5);
  bench.session.probe = true;
  bench.session.kinds = {{2, CommitKind::kNone}};
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.session.xs[2], bench.session.xs[3]);
  EXPECT_NE(bench.session.xs[3], bench.session.xs[4]);
  std::map<uint64_t, bool> probed;
  for (const RoundReport& round : bench.rounds_seen)
    probed[round.round.value()] = round.probe_l1.has_value();
  EXPECT_EQ(probed,
            (std::map<uint64_t, bool>{{0, false}, {1, true}, {2, true}, {3, false}, {4, true}}));
  EXPECT_EQ(bench.rounds_seen[2].kind, CommitKind::kNone);
  EXPECT_EQ(bench.rounds_seen[2].main_round, 2u);
  EXPECT_EQ(bench.rounds_seen[4].main_round, 4u);
  EXPECT_TRUE(bench.rounds_seen[4].run_done);
  EXPECT_FALSE(bench.rounds_seen[3].run_done);
  EXPECT_EQ(std::count(bench.events.begin(), bench.events.end(), "reset"), 0);
}

TEST(TrainerTest, ARewindGoesBackToTheStartWithoutStateProbeOrPreviousVerdict) {
  Bench bench(5);
  bench.session.probe = true;
  bench.session.kinds = {{2, CommitKind::kRewind}};
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.session.xs[3], bench.session.xs[0]);
  EXPECT_EQ(std::count(bench.events.begin(), bench.events.end(), "reset"), 1);
  EXPECT_FALSE(bench.rounds_seen[3].probe_l1.has_value());
  EXPECT_FALSE(bench.rounds_seen[3].prev_inner.has_value());
  EXPECT_TRUE(bench.rounds_seen[4].probe_l1.has_value());
}

TEST(TrainerTest, WithoutProbesInTheRunNoPreviousReplicaIsKept) {
  Bench bench(3);
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.model.kept_previous, 0);
  Bench probing(3);
  probing.session.probe = true;
  ASSERT_TRUE(probing.trainer.Run().ok());
  EXPECT_EQ(probing.model.kept_previous, 3);
}

TEST(TrainerTest, AnEvaluationThatTheServerAsksForGoesWithTheScalarsOnceItIsKnown) {
  Bench bench(8, {.eval_every = 3, .eval_batches = 2});
  bench.session.evaluate_at = 4;
  ASSERT_TRUE(bench.trainer.Run().ok());
  // Six rows in three rounds: known after round 6, sent with round 7's scalars.
  const std::vector<BallotScalars>& sent = bench.session.all_scalars;
  ASSERT_EQ(sent.size(), 8u);
  EXPECT_FALSE(sent[6].held_out.has_value());
  ASSERT_TRUE(sent[7].held_out.has_value());
  EXPECT_EQ(sent[7].held_out->round, Round(4));
  EXPECT_EQ(sent[7].held_out->windows, bench.session.description.held_out_hash);
  double sum = 0, squares = 0;
  for (const int batch : {0, 10}) {
    double loss = 0;
    for (int row = batch; row < batch + 3; ++row)
      loss += QuadraticModel::Loss(bench.session.xs[4], row * 0.01) / 3;
    sum += loss;
    squares += loss * loss;
  }
  EXPECT_NEAR(sent[7].held_out->loss, sum / 2, 1e-12);
  EXPECT_NEAR(sent[7].held_out->error, std::sqrt((squares - sum * sum / 2) / 2), 1e-7);
}

TEST(TrainerTest, ANonFiniteLossAbstainsBeforeTheFirstChunk) {
  for (const double loss :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Bench bench(1);
    bench.model.next_loss = loss;
    ASSERT_TRUE(bench.trainer.Run().ok());
    EXPECT_THAT(bench.events,
                ElementsAre("forward 3000", "abstain loss", "wait", "leave finished"));
    EXPECT_EQ(bench.trainer.report().rounds_abstained, 1u);
    EXPECT_EQ(bench.rounds_seen.at(0).abstained, AbstainReason::kNonFiniteLoss);
  }
}

TEST(TrainerTest, ANonFiniteGradientWithdrawsTheChunksNotYetSent) {
  Bench bench(1);
  bench.model.poisoned = 600;  // chunk 1; chunk 2 has left by then
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_THAT(bench.events, ElementsAre("forward 3000", "final 1100", "final 700", "chunk 2",
                                        "final 300", "final 0", "backward ends", "abstain gradient",
                                        "wait", "leave finished"));
  EXPECT_EQ(bench.rounds_seen.at(0).scalars.nonfinite_coordinates, 1u);
}

TEST(TrainerTest, AccumulationAveragesMicroBatchesAndSendsInTheLastOne) {
  Bench bench(2, {.accumulate = 2, .eval_every = 0, .eval_batches = 0});
  bench.session.probe = true;
  ASSERT_TRUE(bench.trainer.Run().ok());
  const std::vector<std::string> head(bench.events.begin(), bench.events.begin() + 9);
  EXPECT_THAT(head, ElementsAre("forward 3000", "final 1100", "final 700", "final 300", "final 0",
                                "backward ends", "forward 3001", "final 1100", "final 700"));
  EXPECT_EQ(bench.events[9], "chunk 2");
  // The mean of the two targets.
  const double target = (static_cast<double>(3000 % 97) + static_cast<double>(3001 % 97)) * 0.005;
  double l1 = 0;
  for (float x : bench.session.xs[0]) l1 += std::abs(x - target);
  EXPECT_NEAR(bench.session.all_scalars[0].g_l1, l1, 1e-3);
  EXPECT_EQ(bench.session.all_scalars[0].samples, 2u);
  // The probe sees the same two.
  EXPECT_NEAR(*ProbeL1(bench.session.all_scalars[1]), 0.01 * 700 + 0.02 * 800, 1e-3);
}

TEST(TrainerTest, AfterAFetchedStateTheNextRoundIsAskedForAtOnce) {
  Bench bench(4);
  bench.session.probe = true;
  bench.session.fetched_instead = 1;
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(std::count(bench.events.begin(), bench.events.end(), "wait"), 4);
  std::map<uint64_t, bool> probed;  // of the rounds whose commit came
  for (const RoundReport& round : bench.rounds_seen) {
    probed[round.round.value()] = round.probe_l1.has_value();
  }
  EXPECT_EQ(probed, (std::map<uint64_t, bool>{{0, false}, {2, false}, {3, true}}));
}

TEST(TrainerTest, RefusalsOfSessionAndDataEndTheRunWithTheirStatus) {
  Bench refused(1);
  refused.session.send_status = absl::UnavailableError("server gone");
  EXPECT_EQ(refused.trainer.Run(), absl::UnavailableError("server gone"));
  // The session refers to the trainer's ballot until then.
  EXPECT_EQ(refused.events.back(), "leave UNAVAILABLE: server gone");
  Bench empty(1);
  empty.data.status = absl::InvalidArgumentError("no such token");
  EXPECT_EQ(empty.trainer.Run(), absl::InvalidArgumentError("no such token"));
}

TEST(TrainerTest, AFailedDeviceEndsTheRunWithItsStatus) {
  const absl::Status lost = absl::InternalError("cudaLaunchKernel: unspecified launch failure");
  Bench start(1);
  start.device.start_status = lost;
  EXPECT_EQ(start.trainer.Run(), lost);
  Bench finish(1);
  finish.device.queues = true;
  finish.device.finish_status = lost;
  EXPECT_EQ(finish.trainer.Run(), lost);
  EXPECT_EQ(std::count(finish.events.begin(), finish.events.end(), "scalars"), 0);
  EXPECT_THAT(finish.events.back(), HasSubstr("leave INTERNAL: cudaLaunchKernel"));
}

TEST(TrainerTest, ADrainEndsAfterTheRoundInProgress) {
  Bench bench(10);
  bench.trainer.set_on_round([&](const RoundReport&) { bench.session.RequestDrain("test"); });
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.events.back(), "leave drained");
  EXPECT_EQ(bench.trainer.report().rounds_voted, 1u);
}

TEST(TrainerTest, ADrainMayEndARoundWithoutACommit) {
  Bench bench(10);
  bench.session.drain_without_commit = true;
  const std::vector<float> before = bench.model.x();
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.events.back(), "leave drained");
  EXPECT_TRUE(bench.rounds_seen.empty());
  EXPECT_EQ(bench.trainer.report().next_round, Round(0));
  EXPECT_EQ(bench.model.x(), before);
}

TEST(TrainerTest, ADrainBeforeJoiningIsNoError) {
  Bench bench(10);
  bench.session.RequestDrain("test");
  EXPECT_TRUE(bench.trainer.Run().ok());
  EXPECT_THAT(bench.events, ElementsAre("leave drained before it had joined"));
}

TEST(TrainerTest, ARunThatEndsBeforeTheReplicaCameLeavesNothingToSave) {
  Bench bench(0, {.eval_every = 1, .eval_batches = 2});
  bench.session.too_late = true;
  EXPECT_TRUE(bench.trainer.Run().ok());
  EXPECT_THAT(bench.events, ElementsAre("leave finished"));
  EXPECT_FALSE(bench.trainer.report().digest.has_value());
  EXPECT_FALSE(bench.trainer.report().held_out_first.has_value());
}

TEST(TrainerTest, AReplicaThatIsNotTheRunsIsNeitherHashedNorEvaluated) {
  Bench bench(2, {.eval_every = 1, .eval_batches = 2});
  bench.session.lost_at_the_end = true;
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.trainer.report().rounds_voted, 2u);
  EXPECT_FALSE(bench.trainer.report().digest.has_value());
  EXPECT_FALSE(bench.trainer.report().held_out_last.has_value());
}

TEST(TrainerTest, TheReportNamesTheRoundOfItsDigestAlsoAfterCatchingUp) {
  Bench bench(2);
  bench.session.caught_up = 3;
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.trainer.report().next_round, Round(5));
}

// Goal:   the held-out loss is that of a whole replica, though it is measured over several rounds
//         that move it.
// Method: six held-out rows, an evaluation every four rounds: two rows a round, so that the third
// round knows.
TEST(TrainerTest, HeldOutLossIsMeasuredAtTheStartAtTheEndAndInBetween) {
  Bench bench(12, {.eval_every = 4, .eval_batches = 2});
  ASSERT_TRUE(bench.trainer.Run().ok());
  std::map<uint64_t, uint64_t> known;  // of which replica after which round
  for (const RoundReport& round : bench.rounds_seen) {
    if (!round.held_out.has_value()) continue;
    known[round.round.value()] = round.held_out->round.value();
    double sum = 0;
    for (const int row : {0, 1, 2, 10, 11, 12})
      sum += QuadraticModel::Loss(bench.session.xs[round.held_out->round.value()], row * 0.01);
    EXPECT_NEAR(round.held_out->loss, sum / 6, 1e-12) << round.round.value();
  }
  EXPECT_EQ(known, (std::map<uint64_t, uint64_t>{{2, 0}, {6, 4}, {10, 8}}));
  const TrainerReport& report = bench.trainer.report();
  ASSERT_TRUE(report.held_out_first.has_value() && report.held_out_last.has_value());
  EXPECT_EQ(report.held_out_first, bench.rounds_seen[2].held_out->loss);
  EXPECT_LT(*report.held_out_last, *report.held_out_first);
  const std::vector<float>& x = bench.model.x();
  EXPECT_EQ(report.digest, ReplicaDigest(x.data(), 0, x.size()));
}

TEST(TrainerTest, ASliceOfTheHeldOutLossComesAfterTheBallotAndBeforeTheWait) {
  Bench bench(2, {.eval_every = 6, .eval_batches = 2});
  ASSERT_TRUE(bench.trainer.Run().ok());
  const auto wait = std::find(bench.events.begin(), bench.events.end(), "wait");
  EXPECT_THAT(
      std::vector<std::string>(bench.events.begin(), wait),
      ElementsAre("forward 3000", "final 1100", "final 700", "chunk 2", "final 300", "chunk 1",
                  "final 0", "chunk 0", "backward ends", "scalars", "kept held-out 0"));
  // What is left of the first is measured when nobody waits any more.
  const std::vector<std::string> tail(bench.events.end() - 12, bench.events.end());
  EXPECT_THAT(tail, ElementsAre("wait", "kept held-out 2", "kept held-out 10", "kept held-out 11",
                                "kept held-out 12", "last held-out 0", "last held-out 1",
                                "last held-out 2", "last held-out 10", "last held-out 11",
                                "last held-out 12", "leave finished"));
  EXPECT_LT(*bench.trainer.report().held_out_last, *bench.trainer.report().held_out_first);
}

TEST(TrainerTest, WithoutFurtherEvaluationsTheFirstGoesOnRowByRow) {
  Bench bench(8, {.eval_every = 0, .eval_batches = 2});
  ASSERT_TRUE(bench.trainer.Run().ok());
  for (const RoundReport& round : bench.rounds_seen)
    EXPECT_EQ(round.held_out.has_value(), round.round.value() == 5) << round.round.value();
  EXPECT_EQ(bench.trainer.report().held_out_first, bench.rounds_seen[5].held_out->loss);
}

TEST(TrainerTest, AnEvaluationThatCatchingUpWentPastIsBegunAtTheNextCommit) {
  Bench bench(12, {.eval_every = 4, .eval_batches = 2});
  bench.session.jump_before = 3;  // NextRound goes from round 3 to round 4
  ASSERT_TRUE(bench.trainer.Run().ok());
  std::map<uint64_t, uint64_t> known;
  for (const RoundReport& round : bench.rounds_seen) {
    if (round.held_out.has_value()) known[round.round.value()] = round.held_out->round.value();
  }
  EXPECT_EQ(known, (std::map<uint64_t, uint64_t>{{2, 0}, {7, 5}, {10, 8}}));
}

}  // namespace
}  // namespace signvote
