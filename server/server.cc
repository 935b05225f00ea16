#include "server/server.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/export_metadata.h"
#include "common/http/http_server.h"
#include "common/log.h"
#include "common/memory_budget.h"
#include "common/process.h"
#include "common/status.h"
#include "proto/wire/security.h"
#include "server/http/server_metrics.h"
#include "server/init_file.h"
#include "server/line_log.h"
#include "server/metrics_feed.h"
#include "server/replica/master_replica.h"
#include "server/rpc/grpc_server.h"
#include "server/rpc/status_json.h"
#include "server/run/run_thread.h"

namespace signvote {
namespace {

constexpr Duration kLookEvery = std::chrono::milliseconds(100);
constexpr Duration kHealthTimeout = std::chrono::seconds(1);
constexpr Duration kSnapshotTimeout = std::chrono::seconds(2);
// A stop ends the server within 15 s, beside what an export takes to write: the open round, the
// sessions, the calls and the applier each get their part.
constexpr Duration kStopWait = std::chrono::seconds(8);
constexpr Duration kSessionsGrace = std::chrono::seconds(2);
constexpr Duration kCallsGrace = std::chrono::seconds(1);
constexpr Duration kApplierGrace = std::chrono::seconds(3);

// A thread that does not answer is neither healthy nor ready.
HttpResponse Unavailable(const absl::Status& status) {
  return {.code = 503, .body = Describe(status) + "\n"};
}

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

HttpRoutes Routes(run::RunThread* run, rpc::GrpcServer* server, ServerMetrics* metrics,
                  MetricsFeed* feed) {
  return {
      {"/healthz",
       [run] {
         const absl::StatusOr<run::Health> health = run->HealthNow(kHealthTimeout);
         return health.ok() ? HttpResponse{.body = "ok\n"} : Unavailable(health.status());
       }},
      {"/readyz",
       [run, server] {
         const absl::StatusOr<run::Health> health = run->HealthNow(kHealthTimeout);
         if (!health.ok()) return Unavailable(health.status());
         return Readiness(*health, server->connections());
       }},
      {"/metrics",
       [run, server, metrics, feed] {
         const absl::StatusOr<run::StatusPage> page = run->Snapshot(kSnapshotTimeout);
         if (!page.ok()) return Unavailable(page.status());
         feed->Update(*page);
         feed->Update(server->connections());
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

struct TlsSetup {
  wire::TlsFiles files;
  std::shared_ptr<rpc::TlsSource> source;  // null: plaintext
};

absl::StatusOr<wire::TlsMaterial> LoadServerTls(FileSystem* fs, const Clock& clock,
                                                const wire::TlsFiles& files) {
  SIGNVOTE_ASSIGN_OR_RETURN(wire::TlsMaterial material,
                            wire::LoadTls(fs, files, clock.UnixMicros() / 1'000'000));
  SIGNVOTE_RETURN_IF_ERROR(wire::RequireServerRole(material, files));
  return material;
}

// A file that cannot be used changes nothing: who may join today may join tomorrow.
void Reload(const ServerFlags& flags, const TlsSetup& tls, const Clock& clock, FileSystem* fs,
            run::RunThread* run) {
  if (!flags.tokens.empty()) {
    absl::StatusOr<run::TokenTable> tokens = run::TokenTable::Load(fs, flags.tokens);
    if (tokens.ok()) {
      // False: nobody joins any more.
      (void)run->Call(
          [tokens = *std::move(tokens)](run::Run& r, Time) { r.ReplaceTokens(tokens); });
    } else {
      LogError("the tokens cannot be read again; the old ones stay valid",
               {{"error", Describe(tokens.status())}});
    }
  }
  if (tls.source == nullptr) return;
  absl::StatusOr<wire::TlsMaterial> material = LoadServerTls(fs, clock, tls.files);
  if (material.ok()) {
    tls.source->Replace(*std::move(material));
    LogInfo("certificates read again", {{"certificate", tls.files.certificate}});
  } else {
    LogError("the certificates cannot be read again; the old ones stay in use",
             {{"error", Describe(material.status())}});
  }
}

// The whole model as it is when the run is over. One whose applier is far behind a stop is exported
// at the round that it has come to.
absl::Status Export(const std::string& path, const ServerSignals& signals, Clock* clock,
                    FileSystem* fs, run::RunThread* run) {
  std::optional<Time> give_up_at;
  const auto give_up = [&] {
    if (!give_up_at.has_value() && signals.stop_requested()) {
      give_up_at = clock->Now() + kApplierGrace;
    }
    return give_up_at.has_value() && clock->Now() >= *give_up_at;
  };
  const absl::StatusOr<run::RunThread::Final> final = run->FinalReplica(give_up);
  if (final.ok()) {
    return ExportReplica(fs, path, final->replica->layout(), final->replica->x(),
                         ExportMetadata(run->run_id(), final->round), final->config_json);
  }
  if (!absl::IsCancelled(final.status())) {
    return WithContext(final.status(), path);
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const run::RunThread::Exported copy, run->CopyReplica(kApplierGrace));
  LogWarning("the model is written as of an earlier round: the master replica was behind",
             {{"round", copy.round.value()}});
  return ExportReplica(fs, path, copy.layout, copy.x, ExportMetadata(run->run_id(), copy.round),
                       copy.config_json);
}

}  // namespace

absl::Status Serve(const ServerFlags& flags, const ServerSignals& signals, Clock* clock,
                   FileSystem* fs) {
  TlsSetup tls;
  if (!flags.insecure) {
    tls.files = {flags.tls_ca, flags.tls_certificate, flags.tls_key};
    SIGNVOTE_ASSIGN_OR_RETURN(wire::TlsMaterial material, LoadServerTls(fs, *clock, tls.files));
    tls.source = std::make_shared<rpc::TlsSource>(std::move(material));
  }
  ServerMetrics metrics(clock);
  metrics.SetInfo(SoftwareVersion(), flags.run.rule.rule,
                  std::string(DirectionName(flags.run.direction.kind)));
  MetricsFeed feed(&metrics);
  run::RunParts parts{.listener = &feed, .memory = [fs] { return AvailableMemory(fs); }};
  if (!flags.tokens.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(parts.tokens, run::TokenTable::Load(fs, flags.tokens));
  }
  if (!flags.init_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(parts.init, OpenInitFile(fs, flags.init_path));
  }
  // Written when the run is over: what cannot be written must be told before it begins.
  if (!flags.export_path.empty()) {
    SIGNVOTE_RETURN_IF_ERROR(WithContext(RequireWritable(fs, flags.export_path), "--export"));
  }
  std::unique_ptr<LineLog> round_log, event_log;
  if (!flags.round_log_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(round_log, LineLog::Open(fs, flags.round_log_path));
    parts.round_log = round_log.get();
  }
  if (!flags.event_log_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(event_log, LineLog::Open(fs, flags.event_log_path));
    parts.event_log = event_log.get();
  }
  uint64_t words[6];
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string random, fs->RandomBytes(sizeof(words)));
  std::memcpy(words, random.data(), sizeof(words));
  parts.rng = Rng(words[2], words[3]);
  run::RunThreadOptions options{
      .run = flags.run,
      .state = {.run_id = RunId::FromRandom(words[0], words[1])},
      .tally_threads = flags.tally_threads != 0
                           ? flags.tally_threads
                           : TallyThreads::DefaultThreads(std::thread::hardware_concurrency()),
      .test_applier_delay = flags.test_applier_delay,
      .test_applier_delayed = flags.test_applier_delayed};
  options.run.stop_wait = kStopWait;
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<run::RunThread> run,
                            run::RunThread::Create(std::move(options), std::move(parts), clock));
  run->Start();
  SIGNVOTE_ASSIGN_OR_RETURN(
      const std::unique_ptr<rpc::GrpcServer> server,
      rpc::GrpcServer::Start({.listen = flags.listen,
                              .tls = tls.source,
                              .message_bytes_max = flags.run.model.sizes.message_bytes_max,
                              .workers_max = flags.run.model.sizes.workers_max,
                              .descriptors_max = DescriptorLimit()},
                             run.get(), fs, Rng(words[4], words[5]), clock));
  std::unique_ptr<HttpServer> http;
  if (flags.http != "off") {
    SIGNVOTE_ASSIGN_OR_RETURN(
        http, HttpServer::Start(flags.http, Routes(run.get(), server.get(), &metrics, &feed)));
  }
  const int http_port = http == nullptr ? 0 : http->port();
  LogInfo("listening", {{"address", flags.listen},
                        {"port", int64_t{server->port()}},
                        {"http_port", int64_t{http_port}},
                        {"run", run->run_id().ToText()},
                        {"version", SoftwareVersion()},
                        {"tls", std::string(flags.insecure ? "no" : "yes")}});
  if (!flags.port_file.empty()) {
    const std::string text = absl::StrFormat("{\"grpc\": %d, \"http\": %d, \"run_id\": \"%s\"}\n",
                                             server->port(), http_port, run->run_id().ToText());
    SIGNVOTE_RETURN_IF_ERROR(WriteFileAtomically(fs, flags.port_file, text, 0644));
  }
  server->SetServing(true);

  bool stopping = false;
  while (!run->WaitUntilEnded(kLookEvery)) {
    if (signals.take_reload()) Reload(flags, tls, *clock, fs, run.get());
    if (!stopping && signals.stop_requested()) {
      stopping = true;
      run->RequestStop();
    }
  }
  server->SetServing(false);
  absl::Status status = run->end_status();
  // Workers first: they need nothing any more, and the export may take a while.
  run->CloseStreams(kSessionsGrace);
  if (!flags.export_path.empty()) {
    const absl::Status exported = Export(flags.export_path, signals, clock, fs, run.get());
    if (exported.ok()) {
      LogInfo("the model is written", {{"path", flags.export_path}});
    } else if (status.ok()) {
      status = exported;
    } else {
      LogError("the model is not written", {{"error", Describe(exported)}});
    }
  }
  http.reset();
  server->Shutdown(kCallsGrace);
  run->Stop();
  return status;
}

}  // namespace signvote
