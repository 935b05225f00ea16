#pragma once
// Trains with one or more virtual workers in one process and one thread: one model, one replica, one
// gradient; a session, a voter and a direction's state for each. In every round each worker's minibatch
// is computed after the other's, at the same x; so are its local steps, which move the one model from x and
// leave it at x. Where each came to is its own source's to keep.
//
// What they compute is, bit for bit, what as many processes with a server between them compute, with as
// many threads of LibTorch each: LocalRunTest.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "lab/local/local_server.h"
#include "lab/local/local_session.h"
#include "worker/data/dataset.h"
#include "worker/direction/worker_device.h"
#include "worker/models/model.h"
#include "worker/train/ballot_pass.h"
#include "worker/train/held_out.h"
#include "worker/vote/voter.h"

namespace signvote::lab {

struct VirtualWorkersOptions {
  uint32_t workers = 1;
  uint32_t accumulate = 1;  // micro-batches per ballot
  uint64_t eval_rows = 64;  // held-out windows that one pass of the model takes at most
};

// One commit.
struct LocalRound {
  Round round;
  CommitKind kind = CommitKind::kStep;
  uint64_t main_round = 0;  // main rounds committed so far
  float stepsize = 0;       // γ; with local steps η of the round's first minibatch
  float rho = 1;
  double loss = 0;                        // robust mean over the voters; NaN: none
  std::optional<HeldOutLoss> held_out;    // that was measured in this round, before its commit
  double seconds = 0;                     // since the first round, without what evaluations took
  uint64_t bytes_up = 0, bytes_down = 0;  // since the first round, of all workers together
};

struct LocalReport {
  std::optional<HeldOutLoss> held_out_first, held_out_last;
  uint64_t rounds = 0, main_rounds = 0;
  uint64_t minibatches = 0;  // of all workers
  uint64_t targets = 0;      // tokens or samples of all workers
  double seconds = 0, eval_seconds = 0;
  uint64_t bytes_up = 0, bytes_down = 0;
  std::optional<uint64_t> digest;  // of the final replica; nullopt: training never began
  bool stopped = false;            // it ended because a stop was asked for, before its last round
  RunInfo run;
};

// Ownership: owns none of its collaborators, which must outlive it.
// Threads:   one.
// Failure:   what model, data or run refuse ends Run() with that status; report() stays valid.
class VirtualWorkers {
 public:
  using OnRound = std::function<void(const LocalRound& round)>;

  // The model's device is the CPU. `clock` is the machine's: only figures come from it.
  VirtualWorkers(LocalServer* server, Model* model, const Dataset* dataset, Clock* clock,
                 const VirtualWorkersOptions& options);
  ~VirtualWorkers();
  void set_on_round(OnRound callback) { on_round_ = std::move(callback); }

  // Trains until the run is over, or a stop is asked for, with which the round in progress is the last.
  absl::Status Run(const std::stop_token& stop);
  const LocalReport& report() const { return report_; }

 private:
  struct Worker {
    explicit Worker(std::unique_ptr<LocalSession> joining) : session(std::move(joining)) {}
    std::unique_ptr<LocalSession> session;
    HostDevice device;
    std::unique_ptr<BallotSource> source;
    std::unique_ptr<Voter> voter;
    RoundTicket ticket;
    // Of its last ballot, where the run keeps gradients; by tensor of the model.
    std::vector<float> gradient;
    std::vector<const float*> gradient_pointers;
  };

  absl::Status Enter();
  // All that the rounds will need but what each worker has of its own.
  absl::Status TakeMemory();
  absl::Status MakeVoter(Worker* worker);
  void KeepGradientOf(Worker* worker) const;
  // False: the run is over.
  absl::StatusOr<bool> OneRound();
  absl::Status Close();

  // Constant after construction.
  LocalServer* const server_;
  Model* const model_;
  Clock* const clock_;
  const VirtualWorkersOptions options_;
  OnRound on_round_;

  BallotPass pass_;
  std::optional<HeldOutEvaluation> held_out_;  // nullopt: the data set has no held-out windows
  std::unique_ptr<ReplicaMemory> memory_;
  SharedReplica replica_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::optional<Time> began_;
  run::PeerBytes setup_;
  LocalReport report_;
};

}  // namespace signvote::lab
