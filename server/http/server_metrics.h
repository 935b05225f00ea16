#pragma once
// The server's metrics: one list gives names, kinds and help; docs/metrics.md is held to it by a
// test.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/clock.h"

namespace prometheus {
class Registry;
}  // namespace prometheus

namespace signvote {

// X(kind, identifier, name, help). Base units; no label comes from a round, a key or a parameter
// name.
#define SIGNVOTE_SERVER_METRICS(X)                                                               \
  X(kGauge, kCoordinates, "signvote_server_coordinates",                                         \
    "Trained parameters (d); 0 before the first worker joined.")                                 \
  X(kGauge, kRound, "signvote_server_round", "Committed rounds.")                                \
  X(kGauge, kMainRound, "signvote_server_main_round",                                            \
    "Main rounds committed: without those that moved nothing, or were run again.")               \
  X(kGauge, kMainRounds, "signvote_server_main_rounds", "Planned main rounds; 0: unknown.")      \
  X(kGauge, kMinibatches, "signvote_server_minibatches",                                         \
    "Minibatches that all rounds so far asked of a worker; with local steps more than rounds.")  \
  X(kGauge, kUpParameterBytes, "signvote_server_up_parameter_bytes",                             \
    "Bytes of rounds per parameter and minibatch of a worker, worker to server, so far.")        \
  X(kGauge, kDownParameterBytes, "signvote_server_down_parameter_bytes",                         \
    "Bytes of rounds per parameter and minibatch of a worker, server to worker, so far.")        \
  X(kGauge, kLastCommit, "signvote_server_last_commit_timestamp_seconds",                        \
    "Time of the last commit, seconds since 1970; before the first, of the server's start.")     \
  X(kGauge, kPaused, "signvote_server_paused",                                                   \
    "1 while the operator's pause keeps rounds from opening, else 0.")                           \
  X(kGauge, kStepsize, "signvote_server_stepsize", "Stepsize of the last commit.")               \
  X(kGauge, kRescaling, "signvote_server_rescaling_ratio",                                       \
    "rho: by what the last step lengthened all steps so far; 1: rules that rescale nothing.")    \
  X(kGauge, kLean, "signvote_server_lean_ratio",                                                 \
    "z of Lever, -1 to 1: above 0 all steps so far were too short. NaN: none.")                  \
  X(kGauge, kRaceTrials, "signvote_server_race_trials",                                          \
    "Trials of stepsizes that were begun; 0: the rule runs none.")                               \
  X(kGauge, kRaceRounds, "signvote_server_race_rounds",                                          \
    "Rounds of trials so far, which are no main rounds.")                                        \
  X(kGauge, kRaceRoundsLeft, "signvote_server_race_rounds_left",                                 \
    "Rounds that the trials may still take; 0: they are over.")                                  \
  X(kGauge, kLoss, "signvote_server_loss",                                                       \
    "Robust mean of the voters' losses in the last commit.")                                     \
  X(kGauge, kGradientL1, "signvote_server_gradient_l1",                                          \
    "Robust mean of the voters' gradient l1 norms in the last commit.")                          \
  X(kGauge, kDensity, "signvote_server_gradient_density_ratio",                                  \
    "Robust mean of l1^2 / (d l2^2) of the voters' gradients in the last commit, 0 to 1.")       \
  X(kGauge, kMembers, "signvote_server_members", "Connected workers that rounds wait for.")      \
  X(kGauge, kObservers, "signvote_server_observers",                                             \
    "Connected workers that rounds do not wait for.")                                            \
  X(kGauge, kWorkersMin, "signvote_server_workers_min",                                          \
    "Workers that round 0 waits for (--workers-min).")                                           \
  X(kGauge, kCommitLag, "signvote_server_applier_lag_rounds",                                    \
    "Commits that the master replica has not applied yet.")                                      \
  X(kGauge, kTieRatio, "signvote_server_tie_ratio",                                              \
    "Share of the coordinates voted on that were tied in the last commit.")                      \
  X(kGauge, kReady, "signvote_server_ready", "1 while workers can take part, else 0.")           \
  X(kGauge, kConnectionsWaiting, "signvote_server_connections_waiting",                          \
    "Connections without a call yet: silent, or in their handshake.")                            \
  X(kGauge, kJournalBytes, "signvote_server_journal_bytes",                                      \
    "Bytes of all files in the journal's folder; 0: there is none.")                             \
  X(kGauge, kJournalFree, "signvote_server_journal_free_bytes",                                  \
    "Bytes that may still be written beside the journal; 0: there is none, or no room.")         \
  X(kGauge, kJournalFailed, "signvote_server_journal_failed",                                    \
    "1 once the journal cannot be written, and no commit is told any more, else 0.")             \
  X(kGauge, kSnapshotAge, "signvote_server_snapshot_age_seconds",                                \
    "Since the newest snapshot was taken, or this server started; 0: there is no journal.")      \
  X(kGauge, kSnapshotRound, "signvote_server_snapshot_round", "Round of the newest snapshot.")   \
  X(kGauge, kRecoveries, "signvote_server_recoveries",                                           \
    "Servers that took this run up from its journal, this one included; the last 64 are "        \
    "remembered.")                                                                               \
  X(kGauge, kRecoverySeconds, "signvote_server_recovery_seconds",                                \
    "How long this server took for it.")                                                         \
  X(kCounter, kJournalWritten, "signvote_server_journal_written_bytes_total",                    \
    "Bytes of records that went to the journal.")                                                \
  X(kCounter, kJournalSyncs, "signvote_server_journal_syncs_total", "Syncs of the journal.")     \
  X(kCounter, kJournalSyncSeconds, "signvote_server_journal_sync_seconds_total",                 \
    "Time that they took.")                                                                      \
  X(kCounter, kSnapshots, "signvote_server_snapshots_total",                                     \
    "Snapshots that were written and read again.")                                               \
  X(kCounter, kSnapshotFailures, "signvote_server_snapshot_failures_total",                      \
    "Snapshots that could not be written.")                                                      \
  X(kCounter, kAhead, "signvote_server_ahead_joins_total",                                       \
    "Joins of workers that were ahead of the commits that the server recovered.")                \
  X(kCounter, kRounds, "signvote_server_rounds_total", "Rounds committed by this process.")      \
  X(kCounter, kBallots, "signvote_server_ballots_total", "Whole ballots counted.")               \
  X(kCounter, kWorkerMinibatches, "signvote_server_worker_minibatches_total",                    \
    "Minibatches that the workers took who were counted, all of them together.")                 \
  X(kCounter, kTies, "signvote_server_ties_total",                                               \
    "Coordinates whose vote was tied: a coin decided; of averages, they did not move.")          \
  X(kCounter, kJoins, "signvote_server_joins_total", "Workers that became ready.")               \
  X(kCounter, kLosses, "signvote_server_losses_total", "Workers whose stream broke.")            \
  X(kCounter, kAbstentions, "signvote_server_abstentions_total",                                 \
    "Members that a commit did not count.")                                                      \
  X(kCounter, kLateChunks, "signvote_server_late_chunks_total",                                  \
    "Ballot chunks that came after their chunk was closed.")                                     \
  X(kCounter, kDuplicateChunks, "signvote_server_duplicate_chunks_total",                        \
    "Ballot chunks that had come before.")                                                       \
  X(kCounter, kStaleMessages, "signvote_server_stale_messages_total",                            \
    "Messages of a past round, attempt or incarnation.")                                         \
  X(kCounter, kAttemptsReopened, "signvote_server_attempts_reopened_total",                      \
    "Rounds opened again as a further attempt.")                                                 \
  X(kCounter, kScalarsRefused, "signvote_server_scalars_refused_total",                          \
    "Workers left out of the stepsize rule: scalar not finite.")                                 \
  X(kCounter, kDigestMismatches, "signvote_server_digest_mismatches_total",                      \
    "Replica digests that differed from the master's.")                                          \
  X(kCounter, kRefusals, "signvote_server_refusals_total",                                       \
    "Sessions refused or ended by the server for the worker's fault.")                           \
  X(kCounter, kConnectionsTurnedAway, "signvote_server_connections_turned_away_total",           \
    "Connections without a call that were closed to make room for others.")                      \
  X(kCounter, kLogLinesDropped, "signvote_server_log_lines_dropped_total",                       \
    "Lines of logs that were lost because what they went to did not take them in time.")         \
  X(kCounter, kUpRoundsBytes, "signvote_server_wire_up_bytes_total",                             \
    "TCP payload received from workers after they joined (TLS and HTTP/2 included, state "       \
    "transfer not).")                                                                            \
  X(kCounter, kDownRoundsBytes, "signvote_server_wire_down_bytes_total",                         \
    "TCP payload sent to workers after they joined (TLS and HTTP/2 included, state transfer "    \
    "not).")                                                                                     \
  X(kCounter, kUpSetupBytes, "signvote_server_setup_up_bytes_total",                             \
    "TCP payload received for handshakes, joins, state transfer.")                               \
  X(kCounter, kDownSetupBytes, "signvote_server_setup_down_bytes_total",                         \
    "TCP payload sent for handshakes, joins, state transfer.")                                   \
  X(kCounter, kFp32Bytes, "signvote_server_fp32_equivalent_bytes_total",                         \
    "What one direction of the counted ballots would have cost as fp32: 4 bytes per coordinate " \
    "and ballot.")                                                                               \
  X(kHistogram, kRoundSeconds, "signvote_server_round_seconds",                                  \
    "A round, from opening to commit.")                                                          \
  X(kHistogram, kComputeSeconds, "signvote_server_compute_seconds",                              \
    "Voters' time from round open to the last chunk handed over.")                               \
  X(kHistogram, kWaitSeconds, "signvote_server_wait_seconds",                                    \
    "From the first complete ballot to the commit.")                                             \
  X(kHistogram, kTallySeconds, "signvote_server_tally_seconds", "All tallies of a round.")       \
  X(kHistogram, kCommitSeconds, "signvote_server_commit_seconds",                                \
    "Stepsize, hash, encoding and hand-over to the network.")                                    \
  X(kHistogram, kApplySeconds, "signvote_server_apply_seconds",                                  \
    "Applying a commit to the master replica, off the critical path.")                           \
  X(kHistogram, kWorkerApplySeconds, "signvote_server_worker_apply_seconds",                     \
    "Applying a commit at a worker, as it reports.")                                             \
  X(kWorkerGauge, kWorkerAgreement, "signvote_server_worker_agreement_ratio",                    \
    "Share of a worker's bits that equal the verdict.")                                          \
  X(kWorkerGauge, kWorkerLoss, "signvote_server_worker_loss", "Last loss a worker reported.")    \
  X(kWorkerGauge, kWorkerArrival, "signvote_server_worker_arrival_seconds",                      \
    "Recent median from round open to a worker's complete ballot.")                              \
  X(kWorkerGauge, kWorkerMember, "signvote_server_worker_member",                                \
    "1 member, 0 observer; absent when not connected.")                                          \
  X(kWindowsGauge, kHeldOutLoss, "signvote_server_held_out_loss",                                \
    "The run's last held-out loss, nats per target.")                                            \
  X(kWindowsGauge, kHeldOutError, "signvote_server_held_out_error",                              \
    "Its standard error over the windows.")                                                      \
  X(kWindowsGauge, kHeldOutRound, "signvote_server_held_out_round",                              \
    "Commits that the replica held on which it was measured.")                                   \
  X(kProcessGauge, kProcessStart, "process_start_time_seconds",                                  \
    "Start of the process, seconds since 1970.")                                                 \
  X(kProcessGauge, kProcessResident, "process_resident_memory_bytes", "Resident memory.")        \
  X(kProcessGauge, kProcessDescriptors, "process_open_fds", "Open file descriptors.")            \
  X(kProcessGauge, kProcessDescriptorsMax, "process_max_fds",                                    \
    "Most file descriptors that may be open.")                                                   \
  X(kProcessCounter, kProcessCpu, "process_cpu_seconds_total", "User and system CPU time.")      \
  X(kInfo, kBuildInfo, "signvote_server_info", "1, with version, rule and direction as labels.")

enum class MetricKind {
  kGauge,
  kCounter,
  kHistogram,
  kWorkerGauge,
  kWindowsGauge,
  kProcessGauge,
  kProcessCounter,
  kInfo
};

// Every metric of the list with its kind, for the test that holds docs/metrics.md to it.
std::vector<std::pair<std::string, MetricKind>> ServerMetricNames();

enum class ServerMetric {
#define SIGNVOTE_X(kind, id, name, help) id,
  SIGNVOTE_SERVER_METRICS(SIGNVOTE_X)
#undef SIGNVOTE_X
};

// Threads: thread-safe. Labelled metrics carry `worker` and vanish with ForgetWorker, or `windows`,
// the hash of held-out windows, and vanish when another is set.
class ServerMetrics {
 public:
  explicit ServerMetrics(Clock* clock);
  ~ServerMetrics();

  void Set(ServerMetric gauge, double value);
  // For counters: adds `delta` ≥ 0.
  void Add(ServerMetric counter, double delta = 1);
  // For counters whose total is kept elsewhere: raises the counter to `total`; a smaller total is
  // ignored.
  void RaiseTo(ServerMetric counter, double total);
  void Observe(ServerMetric histogram, double value);
  void SetWorker(ServerMetric gauge, const std::string& worker, double value);
  void ForgetWorker(const std::string& worker);
  // Series of other windows than these are removed: nobody draws one line through both.
  void SetWindows(ServerMetric gauge, const std::string& windows, double value);
  // Labels of the info metric; call once.
  void SetInfo(const std::string& version, const std::string& rule, const std::string& direction);
  double Value(ServerMetric gauge_or_counter) const;

  std::shared_ptr<prometheus::Registry> registry() const { return registry_; }
  // What /metrics answers: the Prometheus text format, process figures read at this moment.
  std::string Text();

 private:
  struct Impl;
  const std::shared_ptr<prometheus::Registry> registry_;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace signvote
