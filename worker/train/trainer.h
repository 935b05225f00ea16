#pragma once
// The training loop of one worker: takes rounds from a Session, has a ballot made for each
// (ballot_pass.h), and waits for the commit, which moves x.
//
//   per round:  ballot  →  keep x_t  →  a slice of the held-out loss  →  wait for the commit
//
// Before it says that it is ready it takes all memory that a round will need, after a look at whether
// there is enough of it, and throws one pass away: what does not fit, and what is slow the first time,
// shows before others wait for this worker.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/memory_budget.h"
#include "worker/checkpoint/worker_checkpoints.h"
#include "worker/data/background_check.h"
#include "worker/data/dataset.h"
#include "worker/direction/worker_device.h"
#include "worker/models/model.h"
#include "worker/session/session.h"
#include "worker/train/ballot_pass.h"
#include "worker/train/held_out.h"
#include "worker/vote/voter.h"

namespace signvote {

// When a worker measures the held-out loss.
enum class Evaluate : uint8_t {
  kOff,          // never
  kWhenAsked,    // of the replicas that the server asks for, and then of the last
  kOnItsOwnToo,  // also whatever the server says: of the first, of one every so often, of the last
};

struct TrainerOptions {
  uint32_t accumulate = 1;  // micro-batches per ballot; the gradient is that of their mean
  // Nothing is measured either where the data set has no held-out windows.
  Evaluate evaluate = Evaluate::kWhenAsked;
  // kOnItsOwnToo: rounds between held-out losses; 0: only of the first and the last replica.
  uint64_t eval_every = 50;
  uint64_t eval_rows = 8;  // held-out windows that one pass of the model takes at most
  bool copied_meanwhile =
      false;  // on_round takes copies of the replica, for which there shall be memory
};

// One round as this worker saw it. Times are seconds since the round was opened to it, unless
// "took".
struct RoundReport {  // tidy: allow(members) a line of the round log, key by key
  Round round;
  DataStep data_step;
  Share share;
  uint32_t members = 0;
  uint32_t voters = 0;
  bool observer = false;
  bool probed = false;
  std::optional<AbstainReason> abstained;
  BallotScalars scalars;  // what was sent; only loss is set when the loss was not finite
  std::optional<double> probe_l1, prev_inner;  // where they could be told
  uint32_t minibatches = 0;                    // whose gradients were taken
  uint64_t targets = 0;                        // tokens or samples behind them
  CommitKind kind = CommitKind::kStep;         // what the commit did
  uint64_t main_round = 0;                     // main rounds committed so far
  bool run_done = false;                       // it was the run's last
  float stepsize = 0;                          // committed
  double run_loss = 0;                         // committed robust mean over voters; NaN: none
  std::optional<HeldOutLoss> held_out;         // whose last slice was measured in this round
  bool held_out_own = false;                   // and which the server had not asked for
  // ‖x‖₂ of the token embedding, with each held-out loss
  std::optional<double> embedding_norm;
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
  uint64_t minibatches = 0;
  uint64_t targets = 0;
  std::optional<double> loss_first, loss_last;  // this worker's training loss, nats per target
  std::optional<HeldOutLoss> held_out_first, held_out_last;
  double seconds = 0;  // first round opened to last commit
  double compute_seconds = 0, pack_seconds = 0, wait_seconds = 0, apply_seconds = 0,
         eval_seconds = 0;
  std::optional<uint64_t> digest;  // of the final replica; nullopt: it never was the run's
  Round next_round;                // the replica holds all commits before it
  uint64_t main_rounds = 0;        // of the run, at this worker's last commit, else when it joined
  RunInfo run;
};

// Ownership: owns none of its collaborators, which must outlive it; owns replica and voter.
// Threads:   Run() on one thread; nothing else may be called during it.
// Failure:   what the session, the data or the model refuse ends Run() with that status; report()
//            stays valid. What the data would refuse later does too: they are read once beside the
//            training.
class Trainer {
 public:
  using OnJoined = std::function<void(const RunInfo& run)>;
  using OnRound = std::function<void(const RoundReport& round)>;
  // The replica will not move any more: report().digest and next_round say what it is.
  using OnFinalReplica = std::function<void()>;
  // Memory of the host that is left; nullopt: unknown.
  using MemoryLeft = std::function<std::optional<MemoryLimit>()>;

  // `device` is the model's.
  Trainer(Session* session, Model* model, WorkerDevice* device, const Dataset* dataset,
          Clock* clock, const TrainerOptions& options);
  ~Trainer();
  void set_on_joined(OnJoined callback) { on_joined_ = std::move(callback); }
  void set_on_round(OnRound callback) { on_round_ = std::move(callback); }
  // Called once, however the run ends for this worker, when its replica is the run's as of a round;
  // nobody waits for this worker then. Before the last held-out loss, which may take long.
  void set_on_final_replica(OnFinalReplica callback) { on_final_replica_ = std::move(callback); }
  // Asked when the run is known, before more is taken (worker_memory.h). Empty: all of it is a GPU's, which
  // tells by itself.
  void set_memory_left(MemoryLeft reader) { memory_left_ = std::move(reader); }

  // Where this worker's own state goes and comes from; null, the default: nowhere. Must outlive Run().
  void set_checkpoints(WorkerCheckpoints* checkpoints) { checkpoints_ = checkpoints; }
  // The same of its last ballot, for set_on_final_replica()'s callback: what the file system says.
  absl::Status SaveState();

  // Joins, trains until the run is finished or this worker is drained, leaves.
  absl::Status Run();
  const TrainerReport& report() const { return report_; }
  // The model's parameters in the order of the run, report().run.layout; null before it joined.
  ReplicaMemory* replica() { return replica_.get(); }

 private:
  absl::Status JoinAndTrain();
  absl::Status Enter(const RunInfo& run);
  absl::Status TakeMemory();
  absl::Status Resume();
  absl::Status Train();
  absl::Status Checkpoint(const RoundTicket& ticket, const CommitOutcome& outcome);
  // Calls `use` with the state's owner and with what the model has kept for it.
  template <typename Use>
  absl::Status WithState(const Use& use);
  absl::Status Vote(const RoundTicket& ticket, RoundReport* round);
  absl::Status AddUp(const CommitOutcome& outcome, double wait_start, RoundReport* round);
  absl::Status CloseReplica();
  absl::Status FinishReport();
  absl::StatusOr<std::optional<double>> EmbeddingNorm();
  // Begins to measure x_t, so that it is known well before the next evaluation in `every` rounds.
  absl::Status BeginEvaluation(Round round, uint64_t every);
  absl::Status SliceOfEvaluation(RoundReport* round);
  bool OwnEvaluationIsDue(const CommitOutcome& outcome) const;
  double Elapsed() const { return ToSeconds(clock_->Now() - round_start_); }

  // Constant after construction.
  Session* const session_;
  Model* const model_;
  WorkerDevice* const device_;
  const Dataset* const dataset_;
  Clock* const clock_;
  const TrainerOptions options_;
  BallotPass pass_;
  OnJoined on_joined_;
  OnRound on_round_;
  OnFinalReplica on_final_replica_;
  MemoryLeft memory_left_;
  WorkerCheckpoints* checkpoints_ = nullptr;

  // Constant once Run() has joined.
  RunInfo run_;
  std::unique_ptr<ReplicaMemory> replica_;
  std::unique_ptr<BallotSource> source_;
  std::unique_ptr<Voter> voter_;

  std::optional<BackgroundCheck> data_check_;     // from Run() on
  std::optional<HeldOutEvaluation> held_out_;     // nullopt: none is wanted
  std::optional<Round> asked_round_;              // of the last that the server asked for
  std::optional<HeldOutReport> held_out_unsent_;  // measured since the last ballot
  TrainerReport report_;

  // The round in progress.
  Time round_start_;
};

}  // namespace signvote
