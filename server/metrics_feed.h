#pragma once
// Brings what the engine's thread knows into the metrics: commits as they happen, everything else
// when it is looked at.

#include <set>
#include <string>

#include "common/mutex.h"
#include "server/http/server_metrics.h"
#include "server/rpc/probe.h"

namespace signvote {

// Threads: thread-safe. `metrics` must outlive it.
class MetricsFeed final : public rpc::CommitObserver {
 public:
  explicit MetricsFeed(ServerMetrics* metrics) : metrics_(metrics) {}

  void OnCommit(const rpc::CommitTimes& times) override;
  void OnApplied(double seconds) override;
  // Series of workers that the snapshot no longer shows are removed.
  void Update(const rpc::ServerSnapshot& snapshot);

 private:
  ServerMetrics* const metrics_;
  Mutex mu_;  // one update at a time
  std::set<std::string> workers_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote
