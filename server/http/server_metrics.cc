#include "server/http/server_metrics.h"

#include <unordered_map>
#include <utility>

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include "common/check.h"
#include "common/mutex.h"
#include "common/process.h"

namespace signvote {
namespace {

// 100 µs to 30 s, a little over two steps per decade: rounds of toy models and of large ones.
const prometheus::Histogram::BucketBoundaries kSecondsBuckets = {
    1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30};

struct Spec {
  MetricKind kind;
  const char* name;
  const char* help;
};
constexpr Spec kSpecs[] = {
#define SIGNVOTE_X(kind, id, name, help) {MetricKind::kind, name, help},
    SIGNVOTE_SERVER_METRICS(SIGNVOTE_X)
#undef SIGNVOTE_X
};

}  // namespace

struct ServerMetrics::Impl {
  // Constant after construction: every unlabelled metric, and the families of the labelled ones.
  std::unordered_map<size_t, prometheus::Gauge*> gauges;
  std::unordered_map<size_t, prometheus::Counter*> counters;
  std::unordered_map<size_t, prometheus::Histogram*> histograms;
  std::unordered_map<size_t, prometheus::Family<prometheus::Gauge>*> labelled_families;
  prometheus::Family<prometheus::Gauge>* info = nullptr;

  Mutex mu;
  // (metric, worker) → gauge; bounded by the workers that the server admits.
  std::unordered_map<std::string, std::unordered_map<size_t, prometheus::Gauge*>> workers
      ABSL_GUARDED_BY(mu);
  struct OfWindows {
    std::string windows;
    prometheus::Gauge* gauge = nullptr;
  };
  std::unordered_map<size_t, OfWindows> windows ABSL_GUARDED_BY(mu);
};

ServerMetrics::ServerMetrics(Clock* clock)
    : registry_(std::make_shared<prometheus::Registry>()), impl_(std::make_unique<Impl>()) {
  for (size_t i = 0; i < std::size(kSpecs); ++i) {
    const Spec& spec = kSpecs[i];
    switch (spec.kind) {
      case MetricKind::kGauge:
      case MetricKind::kProcessGauge:
        impl_->gauges[i] =
            &prometheus::BuildGauge().Name(spec.name).Help(spec.help).Register(*registry_).Add({});
        break;
      case MetricKind::kCounter:
      case MetricKind::kProcessCounter:
        impl_->counters[i] = &prometheus::BuildCounter()
                                  .Name(spec.name)
                                  .Help(spec.help)
                                  .Register(*registry_)
                                  .Add({});
        break;
      case MetricKind::kHistogram:
        impl_->histograms[i] = &prometheus::BuildHistogram()
                                    .Name(spec.name)
                                    .Help(spec.help)
                                    .Register(*registry_)
                                    .Add({}, kSecondsBuckets);
        break;
      case MetricKind::kWorkerGauge:
      case MetricKind::kWindowsGauge:
        impl_->labelled_families[i] =
            &prometheus::BuildGauge().Name(spec.name).Help(spec.help).Register(*registry_);
        break;
      case MetricKind::kInfo:
        impl_->info =
            &prometheus::BuildGauge().Name(spec.name).Help(spec.help).Register(*registry_);
        break;
    }
  }
  Set(ServerMetric::kProcessStart, static_cast<double>(clock->UnixMicros()) * 1e-6);
}

ServerMetrics::~ServerMetrics() = default;

void ServerMetrics::Set(ServerMetric gauge, double value) {
  impl_->gauges.at(static_cast<size_t>(gauge))->Set(value);
}

void ServerMetrics::Add(ServerMetric counter, double delta) {
  impl_->counters.at(static_cast<size_t>(counter))->Increment(delta);
}

void ServerMetrics::RaiseTo(ServerMetric counter, double total) {
  prometheus::Counter* c = impl_->counters.at(static_cast<size_t>(counter));
  MutexLock lock(&impl_->mu);  // two that raise at once must not add the difference twice
  if (const double delta = total - c->Value(); delta > 0) c->Increment(delta);
}

void ServerMetrics::Observe(ServerMetric histogram, double value) {
  impl_->histograms.at(static_cast<size_t>(histogram))->Observe(value);
}

void ServerMetrics::SetWorker(ServerMetric gauge, const std::string& worker, double value) {
  const size_t key = static_cast<size_t>(gauge);
  MutexLock lock(&impl_->mu);
  prometheus::Gauge*& slot = impl_->workers[worker][key];
  if (slot == nullptr) slot = &impl_->labelled_families.at(key)->Add({{"worker", worker}});
  slot->Set(value);
}

void ServerMetrics::ForgetWorker(const std::string& worker) {
  MutexLock lock(&impl_->mu);
  auto it = impl_->workers.find(worker);
  if (it == impl_->workers.end()) return;
  for (auto& [key, gauge] : it->second) impl_->labelled_families.at(key)->Remove(gauge);
  impl_->workers.erase(it);
}

void ServerMetrics::SetWindows(ServerMetric gauge, const std::string& windows, double value) {
  const size_t key = static_cast<size_t>(gauge);
  MutexLock lock(&impl_->mu);
  Impl::OfWindows& slot = impl_->windows[key];
  if (slot.gauge != nullptr && slot.windows != windows) {
    impl_->labelled_families.at(key)->Remove(std::exchange(slot.gauge, nullptr));
  }
  if (slot.gauge == nullptr) {
    slot = {.windows = windows,
            .gauge = &impl_->labelled_families.at(key)->Add({{"windows", windows}})};
  }
  slot.gauge->Set(value);
}

void ServerMetrics::SetInfo(const std::string& version, const std::string& rule,
                            const std::string& direction) {
  impl_->info->Add({{"version", version}, {"rule", rule}, {"direction", direction}}).Set(1);
}

double ServerMetrics::Value(ServerMetric metric) const {
  const size_t key = static_cast<size_t>(metric);
  if (auto it = impl_->gauges.find(key); it != impl_->gauges.end()) return it->second->Value();
  auto it = impl_->counters.find(key);
  SIGNVOTE_CHECK(it != impl_->counters.end());
  return it->second->Value();
}

std::string ServerMetrics::Text() {
  Set(ServerMetric::kProcessResident, static_cast<double>(ResidentBytes()));
  Set(ServerMetric::kProcessDescriptors, static_cast<double>(OpenDescriptors()));
  Set(ServerMetric::kProcessDescriptorsMax, static_cast<double>(DescriptorLimit()));
  RaiseTo(ServerMetric::kProcessCpu, ProcessCpuSeconds());
  return prometheus::TextSerializer().Serialize(registry_->Collect());
}

std::vector<std::pair<std::string, MetricKind>> ServerMetricNames() {
  std::vector<std::pair<std::string, MetricKind>> names;
  for (const Spec& spec : kSpecs) names.emplace_back(spec.name, spec.kind);
  return names;
}

}  // namespace signvote
