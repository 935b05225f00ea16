#include "worker/train/probe.h"

#include <limits>
#include <sstream>
#include <vector>

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include "common/process.h"

namespace signvote {
namespace {

constexpr auto kCounter = prometheus::MetricType::Counter;
constexpr auto kGauge = prometheus::MetricType::Gauge;

struct Description {
  prometheus::MetricType type;
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

WorkerProbe::WorkerProbe() {
  for (size_t k = 0; k < kWorkerMetrics; ++k) {
    values_[k] = kDescriptions[k].type == kCounter ? 0.0 : std::numeric_limits<double>::quiet_NaN();
  }
  values_[static_cast<size_t>(WorkerMetric::kConnected)] = 0.0;
}

void WorkerProbe::OnJoined(const RunInfo& run, uint64_t coordinates) {
  MutexLock lock(&mu_);
  joined_ = true;
  At(WorkerMetric::kCoordinates) = static_cast<double>(coordinates);
  At(WorkerMetric::kRoundsMax) = static_cast<double>(run.rounds_max);
}

void WorkerProbe::OnRound(const RoundReport& round) {
  MutexLock lock(&mu_);
  At(WorkerMetric::kRoundsVoted) += round.abstained.has_value() ? 0 : 1;
  At(WorkerMetric::kRoundsAbstained) += round.abstained.has_value() ? 1 : 0;
  At(WorkerMetric::kRoundsOverlapped) += round.first_chunk_overlapped ? 1 : 0;
  At(WorkerMetric::kTargets) += static_cast<double>(round.targets);
  At(WorkerMetric::kNonfinite) += static_cast<double>(round.scalars.nonfinite_coordinates);
  At(WorkerMetric::kComputeSeconds) += round.compute_took_seconds;
  At(WorkerMetric::kPackSeconds) += round.pack_took_seconds;
  At(WorkerMetric::kWaitSeconds) += round.wait_took_seconds;
  At(WorkerMetric::kApplySeconds) += round.apply_took_seconds;
  At(WorkerMetric::kRound) = static_cast<double>(round.round.value() + 1);
  At(WorkerMetric::kMembers) = round.members;
  At(WorkerMetric::kVoters) = round.voters;
  At(WorkerMetric::kLoss) = round.scalars.loss;
  At(WorkerMetric::kRunLoss) = round.run_loss;
  if (round.held_out.has_value()) At(WorkerMetric::kHeldOutLoss) = round.held_out->loss;
  At(WorkerMetric::kStepsize) = static_cast<double>(round.stepsize);
  if (!round.abstained.has_value()) {
    At(WorkerMetric::kGradientL1) = round.scalars.g_l1;
    At(WorkerMetric::kDensity) = round.scalars.g_l1 * round.scalars.g_l1 /
                                 (At(WorkerMetric::kCoordinates) * round.scalars.g_l2_squared);
    At(WorkerMetric::kFirstChunk) = round.first_chunk_seconds;
    At(WorkerMetric::kBackwardEnd) = round.backward_end_seconds;
  }
  At(WorkerMetric::kRoundSeconds) = round.round_took_seconds;
  At(WorkerMetric::kApplyLast) = round.apply_took_seconds;
}

void WorkerProbe::OnSession(const SessionStats& stats) {
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

bool WorkerProbe::joined() const {
  MutexLock lock(&mu_);
  return joined_;
}

double WorkerProbe::value(WorkerMetric metric) const {
  MutexLock lock(&mu_);
  return values_[static_cast<size_t>(metric)];
}

std::string WorkerProbe::Text() const {
  std::vector<prometheus::MetricFamily> families;
  {
    MutexLock lock(&mu_);
    for (size_t k = 0; k < kWorkerMetrics; ++k) {
      prometheus::MetricFamily family;
      family.name = kDescriptions[k].name;
      family.help = kDescriptions[k].help;
      family.type = kDescriptions[k].type;
      prometheus::ClientMetric metric;
      const double value = k == static_cast<size_t>(WorkerMetric::kMemory)
                               ? static_cast<double>(ResidentBytes())
                               : values_[k];
      (kDescriptions[k].type == kCounter ? metric.counter.value : metric.gauge.value) = value;
      family.metric.push_back(metric);
      families.push_back(std::move(family));
    }
  }
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return text.str();
}

}  // namespace signvote
