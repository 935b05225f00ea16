#pragma once
// The worker's metrics: one list makes enum, names and help; docs/metrics.md is held to it by a
// test.

#include <array>
#include <cstddef>
#include <optional>
#include <string>

#include "common/ids.h"
#include "common/mutex.h"
#include "worker/checkpoint/worker_checkpoints.h"
#include "worker/session/types.h"
#include "worker/train/held_out.h"

namespace signvote {

// clang-format off
// X(identifier, counter, gauge, or gauge with the hash of the held-out windows as its label, name, help)
#define SIGNVOTE_WORKER_METRICS(X)                                                                                     \
  X(kRoundsVoted, kCounter, "signvote_worker_rounds_voted_total", "Rounds in which a whole ballot was cast.")          \
  X(kRoundsAbstained, kCounter, "signvote_worker_rounds_abstained_total",                                              \
    "Rounds abstained from because loss or gradient was not finite.")                                                  \
  X(kRoundsOverlapped, kCounter, "signvote_worker_rounds_overlapped_total",                                            \
    "Voted rounds whose first chunk left before the backward pass ended.")                                             \
  X(kMinibatches, kCounter, "signvote_worker_minibatches_total",                                                       \
    "Minibatches whose gradients were taken; more than one per round with local steps.")                               \
  X(kTargets, kCounter, "signvote_worker_targets_total", "Tokens or samples trained on.")                              \
  X(kNonfinite, kCounter, "signvote_worker_nonfinite_coordinates_total",                                               \
    "Coordinates that cast a coin because their gradient was not finite.")                                             \
  X(kComputeSeconds, kCounter, "signvote_worker_compute_seconds_total", "Time in probe, forward and backward passes.") \
  X(kPackSeconds, kCounter, "signvote_worker_pack_seconds_total", "Time in packing ballots and handing them over.")    \
  X(kWaitSeconds, kCounter, "signvote_worker_wait_seconds_total", "Time in waiting for commits.")                      \
  X(kApplySeconds, kCounter, "signvote_worker_apply_seconds_total", "Time in applying commits to the replica.")        \
  X(kSentBytes, kCounter, "signvote_worker_wire_sent_bytes_total",                                                     \
    "TCP payload sent for rounds, TLS and HTTP/2 included, joining excluded.")                                         \
  X(kReceivedBytes, kCounter, "signvote_worker_wire_received_bytes_total",                                             \
    "TCP payload received for rounds, TLS and HTTP/2 included, joining excluded.")                                     \
  X(kSetupSentBytes, kCounter, "signvote_worker_setup_sent_bytes_total",                                               \
    "TCP payload sent for handshakes, joins and state transfers.")                                                     \
  X(kSetupReceivedBytes, kCounter, "signvote_worker_setup_received_bytes_total",                                       \
    "TCP payload received for handshakes, joins and state transfers.")                                                 \
  X(kFp32Bytes, kCounter, "signvote_worker_fp32_bytes_total",                                                          \
    "What fp32 gradients up and fp32 updates down would have cost for the same rounds, payload only.")                 \
  X(kReconnects, kCounter, "signvote_worker_reconnects_total", "Times the session was connected again.")               \
  X(kStateTransfers, kCounter, "signvote_worker_state_transfers_total", "Times the whole replica was fetched.")        \
  X(kVerdictMismatches, kCounter, "signvote_worker_verdict_mismatches_total",                                          \
    "Verdicts whose hash did not match the commit and were fetched again.")                                            \
  X(kCheckpoints, kCounter, "signvote_worker_checkpoints_total", "Checkpoints of this worker's own state that were written.") \
  X(kCheckpointFailures, kCounter, "signvote_worker_checkpoint_failures_total",                                        \
    "Checkpoints that could not be written.")                                                                          \
  X(kCheckpointRound, kGauge, "signvote_worker_checkpoint_round",                                                      \
    "Round of the last checkpoint that was written; NaN: this process has written none.")                              \
  X(kResumedAge, kGauge, "signvote_worker_resumed_age_rounds",                                                         \
    "Rounds by which the state was older than the replica that this process went on from; NaN: it began without one.") \
  X(kConnected, kGauge, "signvote_worker_connected", "1 while the session is connected.")                              \
  X(kIncarnation, kGauge, "signvote_worker_incarnation", "Grows each time this worker's name joins.")                  \
  X(kCoordinates, kGauge, "signvote_worker_coordinates", "Coordinates of the model (d).")                              \
  X(kRound, kGauge, "signvote_worker_round", "The replica holds all commits before this round.")                       \
  X(kMainRound, kGauge, "signvote_worker_main_round", "Main rounds committed so far.")                                 \
  X(kMainRounds, kGauge, "signvote_worker_main_rounds", "Planned main rounds; NaN: unknown.")                          \
  X(kRunDone, kGauge, "signvote_worker_run_done", "1 once the run's last round is committed.")                         \
  X(kMembers, kGauge, "signvote_worker_members", "Members of the last round.")                                         \
  X(kVoters, kGauge, "signvote_worker_voters", "Workers counted in the last commit.")                                  \
  X(kLoss, kGauge, "signvote_worker_loss", "This worker's training loss in the last round, nats per target.")          \
  X(kRunLoss, kGauge, "signvote_worker_run_loss", "The committed loss of the last round, nats per target.")            \
  X(kHeldOutLoss, kWindowsGauge, "signvote_worker_held_out_loss", "The last held-out loss, nats per target.")          \
  X(kHeldOutError, kWindowsGauge, "signvote_worker_held_out_error",                                                    \
    "Standard error of the last held-out loss over its windows.")                                                      \
  X(kHeldOutPerplexity, kWindowsGauge, "signvote_worker_held_out_perplexity",                                          \
    "e to the last held-out loss, of a model of tokens; NaN of any other.")                                            \
  X(kHeldOutRound, kWindowsGauge, "signvote_worker_held_out_round",                                                    \
    "Commits that the replica held whose held-out loss was measured last.")                                            \
  X(kEmbeddingNorm, kGauge, "signvote_worker_embedding_norm",                                                          \
    "Euclidean norm of the token embedding when the last held-out loss was measured; NaN: there is none.")             \
  X(kStepsize, kGauge, "signvote_worker_stepsize", "The last committed stepsize.")                                     \
  X(kGradientL1, kGauge, "signvote_worker_gradient_l1", "Sum of absolute gradient coordinates in the last round.")     \
  X(kDensity, kGauge, "signvote_worker_gradient_density_ratio",                                                        \
    "l1/l2 density of the last gradient, l1^2 / (d l2^2): 1 when all coordinates are equally large.")                  \
  X(kFirstChunk, kGauge, "signvote_worker_first_chunk_seconds",                                                        \
    "From the opening of the last round to its first chunk.")                                                          \
  X(kBackwardEnd, kGauge, "signvote_worker_backward_end_seconds",                                                      \
    "From the opening of the last round to the end of its backward pass.")                                             \
  X(kRoundSeconds, kGauge, "signvote_worker_round_seconds", "From the opening of the last round to its commit applied.") \
  X(kApplyLast, kGauge, "signvote_worker_apply_seconds", "Time that applying the last commit took.")                   \
  X(kMemory, kGauge, "signvote_worker_resident_memory_bytes", "Resident memory of the process.")
// clang-format on

enum class WorkerMetric : size_t {
#define SIGNVOTE_X(id, kind, name, help) id,
  SIGNVOTE_WORKER_METRICS(SIGNVOTE_X)
#undef SIGNVOTE_X
};
inline constexpr size_t kWorkerMetrics = 0
#define SIGNVOTE_X(id, kind, name, help) +1
    SIGNVOTE_WORKER_METRICS(SIGNVOTE_X);
#undef SIGNVOTE_X

// What one round adds, from whoever drives the worker. Times are seconds.
struct WorkerRound {
  Round round;
  bool voted = false;        // a whole ballot was cast
  bool overlapped = false;   // its first chunk left before the backward pass ended
  uint32_t minibatches = 0;  // whose gradients were taken
  uint64_t targets = 0;      // tokens or samples trained on
  uint64_t nonfinite = 0;    // coordinates that cast a coin because their gradient was not finite
  uint32_t members = 0, voters = 0;
  uint64_t main_round = 0;
  bool run_done = false;
  double loss = 0, run_loss = 0, stepsize = 0;
  std::optional<HeldOutLoss> held_out;
  std::optional<double> embedding_norm;
  double g_l1 = 0, g_l2_squared = 0;  // of a voted round, as the two below
  double first_chunk_seconds = 0, backward_end_seconds = 0;
  double compute_seconds = 0, pack_seconds = 0, wait_seconds = 0, apply_seconds = 0;
  double round_seconds = 0;
};

// The current value of every metric; what has no value yet is NaN (a gauge) or 0 (a counter).
// Threads: thread-safe.
class WorkerMetrics {
 public:
  WorkerMetrics();
  void OnJoined(const RunInfo& run) ABSL_LOCKS_EXCLUDED(mu_);
  void OnRound(const WorkerRound& round) ABSL_LOCKS_EXCLUDED(mu_);
  void OnSession(const SessionStats& stats) ABSL_LOCKS_EXCLUDED(mu_);
  void OnCheckpoints(const WorkerCheckpoints::Stats& stats) ABSL_LOCKS_EXCLUDED(mu_);
  bool joined() const ABSL_LOCKS_EXCLUDED(mu_);
  double value(WorkerMetric metric) const ABSL_LOCKS_EXCLUDED(mu_);
  // The Prometheus text format, version 0.0.4.
  std::string Text() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  double& At(WorkerMetric metric) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return values_[static_cast<size_t>(metric)];
  }

  mutable Mutex mu_;
  std::array<double, kWorkerMetrics> values_ ABSL_GUARDED_BY(mu_);
  std::string windows_ ABSL_GUARDED_BY(mu_);  // the label; empty: nothing was measured yet
  bool joined_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace signvote
