#pragma once
// What the server's HTTP port answers (docs/metrics.md, docs/operations.md):
//
//   /healthz        200 while the run's thread answers
//   /readyz         200 while workers can come and the run could go on; else why not
//   /metrics        Prometheus' text
//   /api/v1/status  everything about the run, as JSON
//
// Health checks come every few seconds for as long as the run lasts, whoever asks: they read a few
// numbers. Only the other two take a snapshot of the whole run, on its thread.

#include <functional>

#include "common/http/http_server.h"
#include "common/net/listener.h"
#include "server/http/server_metrics.h"
#include "server/metrics_feed.h"
#include "server/run/run_thread.h"
#include "server/server_journal.h"

namespace signvote {

// What /readyz answers of a run and of the listener's state.
HttpResponse Readiness(const run::Health& health, const ListenerState& connections);

// Threads: the routes may be asked from any thread, for as long as what they are given lives.
// Failure: a thread that does not answer within 1 s, or 2 s for a snapshot, is 503.
// `journal` may be null: the server has none.
HttpRoutes Routes(run::RunThread* run, std::function<ListenerState()> connections,
                  ServerMetrics* metrics, MetricsFeed* feed, const ServerJournal* journal);

}  // namespace signvote
