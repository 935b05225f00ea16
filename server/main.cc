// signvote-server: parses flags, builds the parts, waits for the end or a signal, stops them in
// reverse.

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/cpu.h"
#include "common/exit_codes.h"
#include "common/file_system.h"
#include "common/http/http_server.h"
#include "common/log.h"
#include "common/process.h"
#include "common/status.h"
#include "proto/wire/grpc_log.h"
#include "server/flags.h"
#include "server/http/server_metrics.h"
#include "server/metrics_feed.h"
#include "server/rpc/coordinator.h"
#include "server/rpc/grpc_server.h"
#include "server/rpc/probe.h"

namespace signvote {
namespace {

constexpr Duration kLookEvery = std::chrono::milliseconds(100);
constexpr Duration kSnapshotTimeout = std::chrono::seconds(2);
constexpr Duration kSessionsGrace = std::chrono::seconds(3);
constexpr Duration kCallsGrace = std::chrono::seconds(2);

// A thread that does not answer is neither healthy nor ready.
HttpResponse Healthy(const absl::StatusOr<rpc::ServerSnapshot>& snapshot) {
  if (!snapshot.ok()) return {.code = 503, .body = Describe(snapshot.status()) + "\n"};
  return {.body = "ok\n"};
}

HttpRoutes Routes(rpc::Coordinator* coordinator, ServerMetrics* metrics, MetricsFeed* feed) {
  const auto look = [coordinator] { return coordinator->Snapshot(kSnapshotTimeout); };
  return {
      {"/healthz", [look] { return Healthy(look()); }},
      {"/readyz",
       [look] {
         const absl::StatusOr<rpc::ServerSnapshot> snapshot = look();
         if (!snapshot.ok() || snapshot->ready) return Healthy(snapshot);
         return HttpResponse{.code = 503, .body = snapshot->not_ready_because + "\n"};
       }},
      {"/metrics",
       [look, metrics, feed] {
         const absl::StatusOr<rpc::ServerSnapshot> snapshot = look();
         if (!snapshot.ok()) return Healthy(snapshot);
         feed->Update(*snapshot);
         return HttpResponse{.content_type = kPrometheusContentType, .body = metrics->Text()};
       }},
      {"/api/v1/status",
       [look] {
         const absl::StatusOr<rpc::ServerSnapshot> snapshot = look();
         if (!snapshot.ok()) return Healthy(snapshot);
         return HttpResponse{.content_type = "application/json",
                             .body = rpc::RenderStatusJson(snapshot->status)};
       }},
  };
}

// A file that cannot be used changes nothing: who may join today may join tomorrow.
void ReloadTokens(FileSystem* fs, const std::string& path, rpc::Coordinator* coordinator) {
  absl::StatusOr<rpc::TokenTable> tokens = rpc::TokenTable::Load(fs, path);
  if (tokens.ok()) return coordinator->ReplaceTokens(*std::move(tokens));
  LogError("the tokens cannot be read again; the old ones stay valid",
           {{"error", Describe(tokens.status())}});
}

absl::Status Serve(ServerFlags flags) {
  FileSystem* fs = FileSystem::Posix();
  Clock* clock = Clock::System();
  std::optional<wire::TlsMaterial> tls;
  if (!flags.insecure) {
    const wire::TlsFiles files{flags.tls_ca, flags.tls_certificate, flags.tls_key};
    SIGNVOTE_ASSIGN_OR_RETURN(tls, wire::LoadTls(fs, files, clock->UnixMicros() / 1'000'000));
    SIGNVOTE_RETURN_IF_ERROR(wire::RequireServerRole(*tls, files));
  }
  if (!flags.tokens.empty()) {
    InstallReloadSignal();
    SIGNVOTE_ASSIGN_OR_RETURN(flags.coordinator.tokens, rpc::TokenTable::Load(fs, flags.tokens));
  }
  // Written when the run is over: what cannot be written must be told before it begins.
  if (!flags.export_path.empty()) {
    SIGNVOTE_RETURN_IF_ERROR(WithContext(RequireWritable(fs, flags.export_path), "--export"));
  }
  ServerMetrics metrics(clock);
  metrics.SetInfo(SoftwareVersion(), flags.coordinator.rule.rule, flags.coordinator.direction.kind);
  MetricsFeed feed(&metrics);
  flags.coordinator.observer = &feed;
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Coordinator> coordinator,
                            rpc::Coordinator::Create(flags.coordinator, clock, fs));
  coordinator->Start();
  SIGNVOTE_ASSIGN_OR_RETURN(
      const std::unique_ptr<rpc::GrpcServer> server,
      rpc::GrpcServer::Start({.listen = flags.listen,
                              .tls = std::move(tls),
                              .message_bytes_max = flags.coordinator.message_bytes_max},
                             coordinator.get()));
  std::unique_ptr<HttpServer> http;
  if (flags.http != "off") {
    SIGNVOTE_ASSIGN_OR_RETURN(
        http, HttpServer::Start(flags.http, Routes(coordinator.get(), &metrics, &feed)));
  }
  const int http_port = http == nullptr ? 0 : http->port();
  LogInfo("listening", {{"address", flags.listen},
                        {"port", int64_t{server->port()}},
                        {"http_port", int64_t{http_port}},
                        {"run", coordinator->run_id().ToText()},
                        {"version", SoftwareVersion()},
                        {"tls", std::string(flags.insecure ? "no" : "yes")}});
  if (!flags.port_file.empty()) {
    const std::string text =
        absl::StrFormat("{\"grpc\": %d, \"http\": %d, \"run_id\": \"%s\"}\n", server->port(),
                        http_port, coordinator->run_id().ToText());
    SIGNVOTE_RETURN_IF_ERROR(WriteFileAtomically(fs, flags.port_file, text, 0644));
  }
  server->SetServing(true);

  bool stopping = false;
  while (!coordinator->WaitUntilEnded(kLookEvery)) {
    if (TakeReloadRequest()) ReloadTokens(fs, flags.tokens, coordinator.get());
    if (!stopping && StopRequested()) {
      stopping = true;
      coordinator->RequestStop();
    }
  }
  server->SetServing(false);
  absl::Status status = coordinator->end_status();
  // Workers first: they need nothing any more, and the export may take a while.
  coordinator->CloseSessions(kSessionsGrace);
  if (!flags.export_path.empty()) {
    const absl::Status exported = coordinator->ExportFinal(flags.export_path);
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
  coordinator->Stop();
  return status;
}

int Main(int argc, char** argv) {
  TuneMalloc();
  InstallStopSignals();
  ServerFlags flags;
  absl::Status status = ParseServerFlags(argc, argv, &flags);
  if (status.ok() && flags.print.has_value()) {
    std::fputs(flags.print->c_str(), stdout);
    return 0;
  }
  InitLogging(flags.log);
  wire::RouteGrpcLog();
  if (status.ok()) {
    if (const absl::StatusOr<Isa> isa = ChooseIsa(); !isa.ok())
      status = WithExitCode(isa.status(), ExitCode::kUsage);
  }
  if (status.ok()) status = Serve(std::move(flags));
  if (!status.ok()) LogError(Describe(status));
  return static_cast<int>(ExitCodeFor(status));
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
