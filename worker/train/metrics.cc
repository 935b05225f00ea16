#include "worker/train/metrics.h"

#include <limits>
#include <sstream>
#include <vector>

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include "absl/strings/str_format.h"
#include "common/process.h"

namespace signvote {
namespace {

enum class Kind { kCounter, kGauge, kWindowsGauge };
using enum Kind;

struct Description {
  Kind kind;
  const char* name;
  const char* help;
};
constexpr Description kDescriptions[] = {
#define SIGNVOTE_X(id, kind, name, help) {kind, name, help},
    SIGNVOTE_WORKER_METRICS(SIGNVOTE_X)
#undef SIGNVOTE_X
};
static_assert(std::size(kDescriptions) == kWorkerMetrics);

}  // namespace

WorkerMetrics::WorkerMetrics() {
  for (size_t k = 0; k < kWorkerMetrics; ++k) {
    values_[k] = kDescriptions[k].kind == kCounter ? 0.0 : std::numeric_limits<double>::quiet_NaN();
  }
  values_[static_cast<size_t>(WorkerMetric::kConnected)] = 0.0;
}

void WorkerMetrics::OnJoined(const RunInfo& run) {
  MutexLock lock(&mu_);
  joined_ = true;
  At(WorkerMetric::kCoordinates) = static_cast<double>(run.layout.coordinates());
  At(WorkerMetric::kMainRound) = static_cast<double>(run.main_round);
  if (run.main_rounds.has_value())
    At(WorkerMetric::kMainRounds) = static_cast<double>(*run.main_rounds);
  At(WorkerMetric::kRunDone) = 0;
}

void WorkerMetrics::OnRound(const WorkerRound& round) {
  MutexLock lock(&mu_);
  At(WorkerMetric::kRoundsVoted) += round.voted ? 1 : 0;
  At(WorkerMetric::kRoundsAbstained) += round.voted ? 0 : 1;
  At(WorkerMetric::kRoundsOverlapped) += round.overlapped ? 1 : 0;
  At(WorkerMetric::kMinibatches) += round.minibatches;
  At(WorkerMetric::kTargets) += static_cast<double>(round.targets);
  At(WorkerMetric::kNonfinite) += static_cast<double>(round.nonfinite);
  At(WorkerMetric::kComputeSeconds) += round.compute_seconds;
  At(WorkerMetric::kPackSeconds) += round.pack_seconds;
  At(WorkerMetric::kWaitSeconds) += round.wait_seconds;
  At(WorkerMetric::kApplySeconds) += round.apply_seconds;
  At(WorkerMetric::kRound) = static_cast<double>(round.round.value() + 1);
  At(WorkerMetric::kMainRound) = static_cast<double>(round.main_round);
  At(WorkerMetric::kRunDone) = round.run_done ? 1 : 0;
  At(WorkerMetric::kMembers) = round.members;
  At(WorkerMetric::kVoters) = round.voters;
  At(WorkerMetric::kLoss) = round.loss;
  At(WorkerMetric::kRunLoss) = round.run_loss;
  if (round.held_out.has_value()) {
    At(WorkerMetric::kHeldOutLoss) = round.held_out->loss;
    At(WorkerMetric::kHeldOutError) = round.held_out->error;
    At(WorkerMetric::kHeldOutPerplexity) =
        round.held_out->perplexity.value_or(std::numeric_limits<double>::quiet_NaN());
    At(WorkerMetric::kHeldOutRound) = static_cast<double>(round.held_out->round.value());
    windows_ = absl::StrFormat("%016x", round.held_out->windows);
  }
  if (round.embedding_norm.has_value()) At(WorkerMetric::kEmbeddingNorm) = *round.embedding_norm;
  At(WorkerMetric::kStepsize) = round.stepsize;
  if (round.voted) {
    At(WorkerMetric::kGradientL1) = round.g_l1;
    At(WorkerMetric::kDensity) =
        round.g_l1 * round.g_l1 / (At(WorkerMetric::kCoordinates) * round.g_l2_squared);
    At(WorkerMetric::kFirstChunk) = round.first_chunk_seconds;
    At(WorkerMetric::kBackwardEnd) = round.backward_end_seconds;
  }
  At(WorkerMetric::kRoundSeconds) = round.round_seconds;
  At(WorkerMetric::kApplyLast) = round.apply_seconds;
}

void WorkerMetrics::OnSession(const SessionStats& stats) {
  MutexLock lock(&mu_);
  At(WorkerMetric::kSentBytes) = static_cast<double>(stats.wire_sent_bytes);
  At(WorkerMetric::kReceivedBytes) = static_cast<double>(stats.wire_received_bytes);
  At(WorkerMetric::kSetupSentBytes) = static_cast<double>(stats.setup_sent_bytes);
  At(WorkerMetric::kSetupReceivedBytes) = static_cast<double>(stats.setup_received_bytes);
  if (joined_) {
    At(WorkerMetric::kFp32Bytes) = static_cast<double>(stats.rounds_voted + stats.rounds_received) *
                                   4.0 * At(WorkerMetric::kCoordinates);
  }
  At(WorkerMetric::kReconnects) = static_cast<double>(stats.reconnects);
  At(WorkerMetric::kStateTransfers) = static_cast<double>(stats.state_transfers);
  At(WorkerMetric::kVerdictMismatches) = static_cast<double>(stats.verdict_mismatches);
  At(WorkerMetric::kConnected) = stats.connected ? 1 : 0;
  At(WorkerMetric::kIncarnation) = static_cast<double>(stats.incarnation);
}

void WorkerMetrics::OnCheckpoints(const WorkerCheckpoints::Stats& stats) {
  MutexLock lock(&mu_);
  At(WorkerMetric::kCheckpoints) = static_cast<double>(stats.written_total);
  At(WorkerMetric::kCheckpointFailures) = static_cast<double>(stats.failed_total);
  if (stats.written.has_value())
    At(WorkerMetric::kCheckpointRound) = static_cast<double>(stats.written->value());
  if (stats.resumed.has_value())
    At(WorkerMetric::kResumedAge) = static_cast<double>(stats.resumed->age_rounds);
}

bool WorkerMetrics::joined() const {
  MutexLock lock(&mu_);
  return joined_;
}

double WorkerMetrics::value(WorkerMetric metric) const {
  MutexLock lock(&mu_);
  return values_[static_cast<size_t>(metric)];
}

std::string WorkerMetrics::Text() const {
  std::vector<prometheus::MetricFamily> families;
  {
    MutexLock lock(&mu_);
    for (size_t k = 0; k < kWorkerMetrics; ++k) {
      prometheus::MetricFamily family;
      family.name = kDescriptions[k].name;
      family.help = kDescriptions[k].help;
      const Kind kind = kDescriptions[k].kind;
      family.type =
          kind == kCounter ? prometheus::MetricType::Counter : prometheus::MetricType::Gauge;
      prometheus::ClientMetric metric;
      // Values of other windows are another series: nothing joins the two.
      if (kind == kWindowsGauge && !windows_.empty()) metric.label = {{"windows", windows_}};
      const double value = k == static_cast<size_t>(WorkerMetric::kMemory)
                               ? static_cast<double>(ResidentBytes())
                               : values_[k];
      (kind == kCounter ? metric.counter.value : metric.gauge.value) = value;
      family.metric.push_back(metric);
      families.push_back(std::move(family));
    }
  }
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return text.str();
}

}  // namespace signvote
