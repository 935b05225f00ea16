#include "server/metrics_feed.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"

namespace signvote {
namespace {

// A gauge without a value yet stays at 0, one with a worker label is not shown.
void SetIfKnown(ServerMetrics* metrics, ServerMetric metric, double value) {
  if (!std::isnan(value)) metrics->Set(metric, value);
}

void SetIfKnown(ServerMetrics* metrics, ServerMetric metric, const std::string& worker,
                double value) {
  if (!std::isnan(value)) metrics->SetWorker(metric, worker, value);
}

}  // namespace

void MetricsFeed::OnCommit(const run::CommitTimes& times) {
  metrics_->Add(ServerMetric::kRounds);
  metrics_->Observe(ServerMetric::kRoundSeconds, times.round);
  metrics_->Observe(ServerMetric::kWaitSeconds, times.wait);
  metrics_->Observe(ServerMetric::kTallySeconds, times.tally);
  metrics_->Observe(ServerMetric::kCommitSeconds, times.commit);
  if (!times.has_voter_times) return;
  metrics_->Observe(ServerMetric::kComputeSeconds, times.compute);
  metrics_->Observe(ServerMetric::kWorkerApplySeconds, times.worker_apply);
}

void MetricsFeed::OnApplied(double seconds) {
  metrics_->Observe(ServerMetric::kApplySeconds, seconds);
}

void MetricsFeed::Update(const run::StatusPage& page) {
  MutexLock lock(&mu_);
  const auto set = [this](ServerMetric metric, auto value) {
    metrics_->Set(metric, static_cast<double>(value));
  };
  const auto raise = [this](ServerMetric metric, auto total) {
    metrics_->RaiseTo(metric, static_cast<double>(total));
  };
  set(ServerMetric::kCoordinates, page.coordinates);
  set(ServerMetric::kRound, page.round.value());
  set(ServerMetric::kMainRound, page.main_round);
  set(ServerMetric::kMainRounds, page.main_rounds);
  set(ServerMetric::kMinibatches, page.minibatches);
  SetIfKnown(metrics_, ServerMetric::kUpParameterBytes, page.up_bits / 8);
  SetIfKnown(metrics_, ServerMetric::kDownParameterBytes, page.down_bits / 8);
  set(ServerMetric::kLastCommit, page.health.last_commit_unix_seconds);
  set(ServerMetric::kPaused, page.phase == run::PagePhase::kPaused ? 1 : 0);
  set(ServerMetric::kStepsize, page.stepsize);
  set(ServerMetric::kRescaling, page.rho);
  double lean = std::numeric_limits<double>::quiet_NaN();  // of a round that tells none
  for (const auto& [name, value] : page.rule_numbers) {
    if (name == "z") lean = value;
  }
  set(ServerMetric::kLean, lean);
  set(ServerMetric::kRaceTrials, page.race.trials);
  set(ServerMetric::kRaceRounds, page.race.rounds);
  set(ServerMetric::kRaceRoundsLeft, page.race.rounds_left());
  SetIfKnown(metrics_, ServerMetric::kLoss, page.loss);
  SetIfKnown(metrics_, ServerMetric::kGradientL1, page.g_l1);
  SetIfKnown(metrics_, ServerMetric::kDensity, page.density);
  set(ServerMetric::kWorkersMin, page.workers_min);
  set(ServerMetric::kCommitLag, page.health.applier_lag);
  set(ServerMetric::kTieRatio, page.tie_ratio);
  set(ServerMetric::kReady, page.health.ready ? 1 : 0);
  if (page.held_out.has_value()) {
    const std::string windows = absl::StrFormat("%016x", page.held_out->windows);
    metrics_->SetWindows(ServerMetric::kHeldOutLoss, windows, page.held_out->loss);
    metrics_->SetWindows(ServerMetric::kHeldOutError, windows, page.held_out->error);
    metrics_->SetWindows(ServerMetric::kHeldOutRound, windows,
                         static_cast<double>(page.held_out->round.value()));
  }
  raise(ServerMetric::kBallots, page.wire.ballots);
  raise(ServerMetric::kWorkerMinibatches, page.wire.minibatches);
  raise(ServerMetric::kTies, page.ties);
  raise(ServerMetric::kJoins, page.joins);
  raise(ServerMetric::kLosses, page.losses);
  raise(ServerMetric::kAbstentions, page.abstentions);
  raise(ServerMetric::kLateChunks, page.late_chunks);
  raise(ServerMetric::kDuplicateChunks, page.duplicate_chunks);
  raise(ServerMetric::kStaleMessages, page.stale_messages);
  raise(ServerMetric::kAttemptsReopened, page.attempts_reopened);
  raise(ServerMetric::kScalarsRefused, page.scalars_refused);
  raise(ServerMetric::kDigestMismatches, page.digest_mismatches);
  raise(ServerMetric::kAhead, page.ahead);
  raise(ServerMetric::kRefusals, page.refusals);
  raise(ServerMetric::kLogLinesDropped, page.log_lines_dropped);
  raise(ServerMetric::kUpRoundsBytes, page.wire.up_rounds_bytes);
  raise(ServerMetric::kDownRoundsBytes, page.wire.down_rounds_bytes);
  raise(ServerMetric::kUpSetupBytes, page.wire.up_setup_bytes);
  raise(ServerMetric::kDownSetupBytes, page.wire.down_setup_bytes);
  raise(ServerMetric::kFp32Bytes, page.wire.fp32_equivalent_bytes);

  uint64_t members = 0, observers = 0;
  std::set<std::string> present;
  for (const run::WorkerPage& worker : page.workers) {
    if (!worker.connected) continue;
    ++(worker.member ? members : observers);
    present.insert(worker.name);
    metrics_->SetWorker(ServerMetric::kWorkerMember, worker.name, worker.member ? 1 : 0);
    SetIfKnown(metrics_, ServerMetric::kWorkerAgreement, worker.name, worker.agreement);
    SetIfKnown(metrics_, ServerMetric::kWorkerLoss, worker.name, worker.loss);
    SetIfKnown(metrics_, ServerMetric::kWorkerArrival, worker.name, worker.arrival_seconds);
  }
  set(ServerMetric::kMembers, members);
  set(ServerMetric::kObservers, observers);
  for (const std::string& name : workers_) {
    if (!present.contains(name)) metrics_->ForgetWorker(name);
  }
  workers_ = std::move(present);
}

void MetricsFeed::Update(const ListenerState& connections) {
  metrics_->Set(ServerMetric::kConnectionsWaiting, static_cast<double>(connections.waiting));
  metrics_->RaiseTo(ServerMetric::kConnectionsTurnedAway,
                    static_cast<double>(connections.turned_away));
}

}  // namespace signvote
