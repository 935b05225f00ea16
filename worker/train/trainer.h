#pragma once
// The training loop of one worker: takes rounds from a Session, computes gradients with a Model on
// minibatches of a Dataset, packs them on a WorkerDevice and sends each chunk of the ballot while
// the backward pass still runs.
//
//   per round:  [probe: h = ∇f(x_{t−1}) on the same minibatch]  →  forward  →  backward, chunk by
//   chunk  →  scalars
//               →  keep x_t  →  a slice of the held-out loss  →  wait for the commit, which moves x
//
// The probe runs first so that the main pass streams. docs/architecture.md, "One ballot".

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <memory_resource>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "worker/data/dataset.h"
#include "worker/direction/worker_device.h"
#include "worker/models/model.h"
#include "worker/session/session.h"
#include "worker/train/held_out.h"

namespace signvote {

struct TrainerOptions {
  uint32_t accumulate = 1;  // micro-batches per ballot; the gradient is that of their mean
  // Rounds between held-out losses, over which each is measured; 0: only before the first round and
  // after the last.
  uint64_t eval_every = 50;
  uint32_t eval_batches = 8;  // micro-batches per held-out loss; 0: none is measured
};

// One round as this worker saw it. Times are seconds since the round was opened to it, unless
// "took".
struct RoundReport {
  Round round;
  DataStep data_step;
  Share share;
  uint32_t members = 0;
  uint32_t voters = 0;
  bool observer = false;
  bool probed = false;
  std::optional<AbstainReason> abstained;
  BallotScalars scalars;  // what was sent; only loss is set when the loss was not finite
  uint64_t targets = 0;   // tokens or samples behind the gradient
  float stepsize = 0;     // committed
  double run_loss = 0;    // committed robust mean over voters; NaN: none
  std::optional<HeldOutLoss> held_out;  // whose last slice was measured in this round
  double first_chunk_seconds = 0;   // when the first chunk was handed to the session; 0: none was
  double backward_end_seconds = 0;  // when the backward pass ended, on its device
  double compute_took_seconds = 0;  // probe, forward, backward, without packing
  double pack_took_seconds = 0;     // direction, signs, scalars, handing over
  double wait_took_seconds = 0;     // for the commit, without applying it
  double apply_took_seconds = 0;
  double round_took_seconds = 0;        // from open to applied
  bool first_chunk_overlapped = false;  // the first chunk left before backward ended
};

// Sums over the run.
struct TrainerReport {
  uint64_t rounds_voted = 0;
  uint64_t rounds_abstained = 0;
  uint64_t rounds_overlapped = 0;  // voted rounds whose first chunk left before backward ended
  uint64_t targets = 0;
  std::optional<double> loss_first, loss_last;  // this worker's training loss, nats per target
  std::optional<double> held_out_first, held_out_last;  // nats per target
  double seconds = 0;                                   // first round opened to last commit
  double compute_seconds = 0, pack_seconds = 0, wait_seconds = 0, apply_seconds = 0,
         eval_seconds = 0;
  std::optional<uint64_t> digest;  // of the final replica; nullopt: it never was the run's
  Round next_round;                // the replica holds all commits before it
  RunInfo run;
};

// Ownership: owns none of its collaborators; they must outlive it.
// Threads:   Run() on one thread; nothing else may be called during it.
// Failure:   what the session, the data or the model refuse ends Run() with that status; report()
//            stays valid.
class Trainer {
 public:
  using OnJoined = std::function<void(const RunInfo& run)>;
  using OnRound = std::function<void(const RoundReport& round)>;

  // `device` is the model's, and `replica` what it made of model->parameters().
  Trainer(Session* session, Model* model, WorkerDevice* device, ReplicaMemory* replica,
          const Dataset* dataset, Clock* clock, const TrainerOptions& options);
  ~Trainer();
  void set_on_joined(OnJoined callback) { on_joined_ = std::move(callback); }
  void set_on_round(OnRound callback) { on_round_ = std::move(callback); }

  // Joins, trains until the run is finished or this worker is drained, leaves.
  absl::Status Run();
  const TrainerReport& report() const { return report_; }

 private:
  absl::Status JoinAndTrain();
  absl::Status Train();
  absl::Status Vote(const RoundTicket& ticket, RoundReport* round);
  absl::StatusOr<bool> ProbePass(const RoundTicket& ticket);
  void OnGradientReady(const RoundTicket& ticket, uint64_t first, uint64_t count);
  absl::Status PackChunk(const RoundTicket& ticket, ChunkIndex k);
  enum class Until { kAnyIsUnfinished, kAllAreSent };
  absl::Status SendChunks(Until until);
  absl::StatusOr<bool> BackwardRuns();
  uint64_t SlicesOfAnEvaluation() const;
  bool EvaluationIsDue(Round next_round) const;
  bool KeepsPrevious() const;
  double Elapsed() const { return ToSeconds(clock_->Now() - round_start_); }

  // Constant after construction.
  Session* const session_;
  Model* const model_;
  WorkerDevice* const device_;
  ReplicaMemory* const replica_;
  const Dataset* const dataset_;
  Clock* const clock_;
  const TrainerOptions options_;
  OnJoined on_joined_;
  OnRound on_round_;

  RunInfo run_;
  // [⌈d/8⌉], unchanged from the first SendChunk until the commit
  std::pmr::vector<uint8_t> ballot_;
  // after ballot_, which it may still write to when a run fails
  std::unique_ptr<BallotPacker> packer_;
  Batch batch_;
  std::optional<HeldOutEvaluation> held_out_;  // nullopt: none is wanted
  TrainerReport report_;

  // What the previous round left behind.
  bool probe_seen_ = false;      // some round asked for a probe
  bool previous_valid_ = false;  // the model's previous slot holds x_{previous_round_}
  Round previous_round_;
  const uint8_t* prev_verdict_ = nullptr;  // of round previous_round_, or null

  // The round in progress.
  Time round_start_;
  bool probed_ = false;
  std::vector<uint64_t> chunk_missing_;  // coordinates of the chunk whose gradient is not final yet
  std::deque<ChunkIndex> packing_;       // chunks in flight at the packer, in order of Start()
  std::vector<ChunkScalars> chunk_scalars_;
  absl::Status pack_status_;  // first failure of packing or sending a chunk
  bool withdrawn_ = false;    // a non-finite gradient was met; no further chunk is sent
  // Model::Backward has been called for the last micro-batch and has not returned
  bool backward_called_ = false;
  double pack_seconds_ = 0;
  std::optional<double> first_chunk_seconds_;
  bool first_chunk_overlapped_ = false;
};

}  // namespace signvote
