#include "server/routes.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "common/status.h"
#include "server/rpc/status_json.h"

namespace signvote {
namespace {

constexpr Duration kHealthTimeout = std::chrono::seconds(1);
constexpr Duration kSnapshotTimeout = std::chrono::seconds(2);

// A thread that does not answer is neither healthy nor ready.
HttpResponse Unavailable(const absl::Status& status) {
  return {.code = 503, .body = Describe(status) + "\n"};
}

}  // namespace

HttpResponse Readiness(const run::Health& health, const ListenerState& connections) {
  if (!health.ready) return {.code = 503, .body = health.not_ready_because + "\n"};
  if (connections.out_of_descriptors) {
    return {.code = 503,
            .body =
                "no descriptor is left for another connection; raise the limit (LimitNOFILE=, "
                "ulimit -n)\n"};
  }
  // Workers come in all the same, a little later: nobody shall be sent elsewhere for it.
  if (connections.crowded) {
    return {.body = absl::StrFormat("ok\ncrowded: %d connections without a handshake, and some are "
                                    "turned away\n",
                                    connections.waiting)};
  }
  return {.body = "ok\n"};
}

HttpRoutes Routes(run::RunThread* run, std::function<ListenerState()> connections,
                  ServerMetrics* metrics, MetricsFeed* feed, const ServerJournal* journal) {
  return {
      {"/healthz",
       [run] {
         const absl::StatusOr<run::Health> health = run->HealthNow(kHealthTimeout);
         return health.ok() ? HttpResponse{.body = "ok\n"} : Unavailable(health.status());
       }},
      {"/readyz",
       [run, connections] {
         const absl::StatusOr<run::Health> health = run->HealthNow(kHealthTimeout);
         if (!health.ok()) return Unavailable(health.status());
         return Readiness(*health, connections());
       }},
      {"/metrics",
       [run, connections, metrics, feed, journal] {
         const absl::StatusOr<run::StatusPage> page = run->Snapshot(kSnapshotTimeout);
         if (!page.ok()) return Unavailable(page.status());
         feed->Update(*page);
         feed->Update(connections());
         if (journal != nullptr) journal->Show(metrics);
         return HttpResponse{.content_type = kPrometheusContentType, .body = metrics->Text()};
       }},
      {"/api/v1/status",
       [run] {
         const absl::StatusOr<run::StatusPage> page = run->Snapshot(kSnapshotTimeout);
         if (!page.ok()) return Unavailable(page.status());
         return HttpResponse{.content_type = "application/json",
                             .body = rpc::RenderStatusJson(*page)};
       }},
  };
}

}  // namespace signvote
