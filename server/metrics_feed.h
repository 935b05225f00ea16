#pragma once
// Brings what the run knows into the metrics: commits as they happen, everything else when it is
// looked at.

#include <set>
#include <string>

#include "common/mutex.h"
#include "common/net/listener.h"
#include "server/http/server_metrics.h"
#include "server/run/run_books.h"

namespace signvote {

// Threads: thread-safe. `metrics` must outlive it.
class MetricsFeed final : public run::CommitListener {
 public:
  explicit MetricsFeed(ServerMetrics* metrics) : metrics_(metrics) {}

  void OnCommit(const run::CommitTimes& times) override;
  void OnApplied(double seconds) override;
  // Series of workers that the page no longer shows are removed.
  void Update(const run::StatusPage& page);
  void Update(const ListenerState& connections);

 private:
  ServerMetrics* const metrics_;
  Mutex mu_;  // one update at a time
  std::set<std::string> workers_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote
