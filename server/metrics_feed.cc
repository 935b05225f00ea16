#include "server/metrics_feed.h"

#include <cmath>

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

void MetricsFeed::OnCommit(const rpc::CommitTimes& times) {
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

void MetricsFeed::Update(const rpc::ServerSnapshot& snapshot) {
  MutexLock lock(&mu_);
  const v1::Status& status = snapshot.status;
  const auto set = [this](ServerMetric metric, auto value) {
    metrics_->Set(metric, static_cast<double>(value));
  };
  const auto raise = [this](ServerMetric metric, auto total) {
    metrics_->RaiseTo(metric, static_cast<double>(total));
  };
  set(ServerMetric::kCoordinates, status.coordinates());
  set(ServerMetric::kRound, status.round());
  set(ServerMetric::kRoundsMax, status.rounds_max());
  set(ServerMetric::kLastCommit, snapshot.last_commit_unix_seconds);
  set(ServerMetric::kPaused, status.phase() == v1::Status::PHASE_PAUSED ? 1 : 0);
  set(ServerMetric::kStepsize, status.stepsize());
  SetIfKnown(metrics_, ServerMetric::kLoss, status.loss());
  SetIfKnown(metrics_, ServerMetric::kGradientL1, status.g_l1());
  SetIfKnown(metrics_, ServerMetric::kDensity, status.density());
  set(ServerMetric::kWorkersMin, snapshot.workers_min);
  set(ServerMetric::kCommitLag, snapshot.applier_lag);
  set(ServerMetric::kTieRatio, snapshot.tie_ratio);
  set(ServerMetric::kReady, snapshot.ready ? 1 : 0);
  raise(ServerMetric::kBallots, status.wire().ballots());
  raise(ServerMetric::kTies, snapshot.ties);
  raise(ServerMetric::kJoins, status.joins());
  raise(ServerMetric::kLosses, status.losses());
  raise(ServerMetric::kAbstentions, status.abstentions());
  raise(ServerMetric::kLateChunks, status.late_chunks());
  raise(ServerMetric::kDuplicateChunks, status.duplicate_chunks());
  raise(ServerMetric::kStaleMessages, snapshot.stale_messages);
  raise(ServerMetric::kAttemptsReopened, snapshot.attempts_reopened);
  raise(ServerMetric::kScalarsRefused, snapshot.scalars_refused);
  raise(ServerMetric::kDigestMismatches, snapshot.digest_mismatches);
  raise(ServerMetric::kRefusals, snapshot.refusals);
  raise(ServerMetric::kUpRoundsBytes, status.wire().up_rounds_bytes());
  raise(ServerMetric::kDownRoundsBytes, status.wire().down_rounds_bytes());
  raise(ServerMetric::kUpSetupBytes, status.wire().up_setup_bytes());
  raise(ServerMetric::kDownSetupBytes, status.wire().down_setup_bytes());
  raise(ServerMetric::kFp32Bytes, status.wire().fp32_equivalent_bytes());

  uint64_t members = 0, observers = 0;
  std::set<std::string> present;
  for (const v1::Worker& worker : status.workers()) {
    if (!worker.connected()) continue;
    const bool member = worker.role() == v1::Worker::ROLE_MEMBER;
    ++(member ? members : observers);
    present.insert(worker.name());
    metrics_->SetWorker(ServerMetric::kWorkerMember, worker.name(), member ? 1 : 0);
    SetIfKnown(metrics_, ServerMetric::kWorkerAgreement, worker.name(), worker.agreement());
    SetIfKnown(metrics_, ServerMetric::kWorkerLoss, worker.name(), worker.loss());
    SetIfKnown(metrics_, ServerMetric::kWorkerArrival, worker.name(), worker.arrival_seconds());
  }
  set(ServerMetric::kMembers, members);
  set(ServerMetric::kObservers, observers);
  for (const std::string& name : workers_) {
    if (!present.contains(name)) metrics_->ForgetWorker(name);
  }
  workers_ = std::move(present);
}

}  // namespace signvote
