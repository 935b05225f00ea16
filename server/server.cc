#include "server/server.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/exit_codes.h"
#include "common/http/http_server.h"
#include "common/line_log.h"
#include "common/log.h"
#include "common/memory_budget.h"
#include "common/model_file.h"
#include "common/process.h"
#include "common/status.h"
#include "common/text.h"
#include "proto/wire/security.h"
#include "server/exporter.h"
#include "server/http/server_metrics.h"
#include "server/init_file.h"
#include "server/init_run.h"
#include "server/metrics_feed.h"
#include "server/routes.h"
#include "server/rpc/grpc_server.h"
#include "server/run/run_thread.h"
#include "server/server_journal.h"
#include "server/stop_budget.h"
#include "server/tokens_file.h"

namespace signvote {
namespace {

constexpr Duration kLookEvery = std::chrono::milliseconds(100);
// A stop ends the server within this time, beside what an export takes to write.
constexpr Duration kStopWhole = std::chrono::seconds(15);
// Of which the open round has so much, and its tally and commit 2 s more (server/round/engine.cc).
constexpr Duration kStopWait = std::chrono::seconds(8);
constexpr Duration kSessionsGrace = std::chrono::seconds(2);
constexpr Duration kCallsGrace = std::chrono::seconds(1);
static_assert(kCallsGrace <= Exporter::kReserve);
constexpr uint64_t kFileDescriptors = 10;  // exports, logs, and what is read again

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
    absl::StatusOr<run::TokenTable> tokens = ReadTokensFile(fs, flags.tokens);
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

// A config.json of another model beside --export is told before the run: at once where one lies beside
// --init, else to the first worker, whose model it then is.
absl::Status CheckExport(const ServerFlags& flags, FileSystem* fs,
                         const run::InitialParameters* init,
                         run::RunModel::ConfigCheck* config_check) {
  const std::string& path = flags.exports.path;
  if (path.empty()) return absl::OkStatus();
  SIGNVOTE_RETURN_IF_ERROR(
      RequireModelTarget(fs, path, init != nullptr ? init->config_json() : ""));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<std::string> there, ReadConfigBeside(fs, path));
  if (there.has_value()) {
    // It goes to a worker: a path need not be UTF-8.
    *config_check = [path = ForPeople(path, path.size()), there](const std::string& config_json) {
      return WithContext(RequireOwnConfig(path, there, config_json), "--export");
    };
  }
  return absl::OkStatus();
}

absl::Status StoppedEarly() {
  LogInfo("stopped by the operator before the first round");
  return absl::OkStatus();
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
  for (const std::string& warning : DirectionWarnings(flags.run.direction)) LogWarning(warning);
  ServerMetrics metrics(clock);
  metrics.SetInfo(SoftwareVersion(), flags.run.rule.rule,
                  std::string(DirectionName(flags.run.direction.kind)));
  MetricsFeed feed(&metrics);
  run::RunParts parts{.listener = &feed, .memory = [fs] { return AvailableMemory(fs); }};
  if (!flags.tokens.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(parts.tokens, ReadTokensFile(fs, flags.tokens));
  }
  uint64_t words[6];
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string random, fs->RandomBytes(sizeof(words)));
  std::memcpy(words, random.data(), sizeof(words));
  run::RunState state{.run_id = RunId::FromRandom(words[0], words[1])};
  std::unique_ptr<ServerJournal> journal;
  absl::Status init_status;
  bool init_goes_on = false;  // the run of --init, which was taken up
  const auto go_on = [&](run::RunState* begins) -> absl::Status {
    absl::StatusOr<std::optional<run::RunState>> taken =
        TakeUpInitRun(fs, *clock, flags, signals.stop_requested);
    init_status = taken.status();
    if (!taken.ok() || !taken->has_value()) return init_status;
    *begins = **std::move(taken);
    init_goes_on = true;
    return absl::OkStatus();
  };
  if (!flags.journal.path.empty()) {
    absl::StatusOr<std::unique_ptr<ServerJournal>> opened =
        ServerJournal::Open(flags.journal, flags.run, clock, go_on, &state);
    if (absl::IsCancelled(init_status)) return StoppedEarly();
    if (!init_status.ok()) return init_status;
    if (!opened.ok()) return WithContext(opened.status(), "--journal");
    journal = *std::move(opened);
  } else if (!go_on(&state).ok()) {
    return absl::IsCancelled(init_status) ? StoppedEarly() : init_status;
  }
  const bool init_begins = !flags.init_path.empty() && !init_goes_on;
  if (init_begins && state.has_parameters()) {
    LogInfo("the run goes on from its journal: --init was for its beginning",
            {{"init", flags.init_path}});
  } else if (init_begins) {
    absl::StatusOr<std::unique_ptr<run::InitialParameters>> init =
        OpenInitFile(fs, flags.init_path, signals.stop_requested);
    if (absl::IsCancelled(init.status())) return StoppedEarly();
    if (!init.ok()) return init.status();
    parts.init = *std::move(init);
  }
  run::RunOptions run_options = flags.run;
  // Written when the run is over: what cannot be written must be told before it begins.
  SIGNVOTE_RETURN_IF_ERROR(WithContext(
      CheckExport(flags, fs, parts.init.get(), &run_options.model.config_check), "--export"));
  if (!flags.port_file.empty())
    SIGNVOTE_RETURN_IF_ERROR(WithContext(RequireWritable(fs, flags.port_file), "--port-file"));
  std::unique_ptr<LineLog> round_log, event_log;
  if (!flags.round_log_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(round_log, LineLog::Open(fs, flags.round_log_path));
    parts.round_log = round_log.get();
  }
  if (!flags.event_log_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(event_log, LineLog::Open(fs, flags.event_log_path));
    parts.event_log = event_log.get();
  }
  parts.rng = Rng(words[2], words[3]);
  run::RunThreadOptions options{
      .run = std::move(run_options),
      .state = std::move(state),
      .journal = journal == nullptr ? run::RunJournal() : journal->parts(),
      .tally_threads = flags.tally_threads != 0
                           ? flags.tally_threads
                           : TallyThreads::DefaultThreads(std::thread::hardware_concurrency()),
      .test_applier_delay = flags.test_applier_delay,
      .test_applier_delayed = flags.test_applier_delayed};
  options.run.stop_wait = kStopWait;
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<run::RunThread> run,
                            run::RunThread::Create(std::move(options), std::move(parts), clock));
  run->Start();
  const uint64_t descriptors = DescriptorLimit();
  const uint32_t http_connections = HttpConnectionsFor(descriptors);
  SIGNVOTE_ASSIGN_OR_RETURN(
      const std::unique_ptr<rpc::GrpcServer> server,
      rpc::GrpcServer::Start(
          {.listen = flags.listen,
           .tls = tls.source,
           .message_bytes_max = flags.run.model.sizes.message_bytes_max,
           .workers_max = flags.run.model.sizes.workers_max,
           .descriptors_max = descriptors,
           .descriptors_reserved = HttpDescriptors(http_connections) + kFileDescriptors},
          run.get(), fs, Rng(words[4], words[5]), clock));
  std::unique_ptr<HttpServer> http;
  if (flags.http != "off") {
    const auto connections = [server = server.get()] { return server->connections(); };
    SIGNVOTE_ASSIGN_OR_RETURN(
        http, HttpServer::Start(flags.http,
                                Routes(run.get(), connections, &metrics, &feed, journal.get()),
                                http_connections));
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
  if (journal == nullptr) {
    LogInfo(
        "no --journal: if this server is killed, the run ends at the last model that was exported, "
        "or goes on from the last one that a worker saved (--init)");
  }
  server->SetServing(true);

  Exporter exporter(fs, clock, run.get(), flags.exports);
  StopBudget budget(clock, kStopWhole, signals.stop_requested);
  bool stopping = false;
  while (!run->WaitUntilEnded(kLookEvery)) {
    const bool reload = signals.take_reload();
    if (reload) Reload(flags, tls, *clock, fs, run.get());
    if (signals.take_reopen() || reload) {
      for (LineLog* const log : {round_log.get(), event_log.get()})
        if (log != nullptr) log->Reopen();
    }
    exporter.Look(signals.take_save() ? Exporter::Asked::kYes : Exporter::Asked::kNo);
    if (!stopping && budget.Begun()) {
      stopping = true;
      run->RequestStop();
    }
  }
  server->SetServing(false);
  absl::Status status = run->end_status();
  // Workers first: they need nothing any more, and the export may take a while.
  run->CloseStreams(budget.Share(kSessionsGrace, kCallsGrace));
  if (const absl::Status exported = exporter.Final(&budget, signals.take_save);
      absl::IsFailedPrecondition(exported)) {
    // It is a stop before there was anything to lose.
    LogWarning("no model is written", {{"why", std::string(exported.message())}});
  } else if (!exported.ok()) {
    // Whoever reads the exit code takes the model to be written after any other end.
    const bool lost = ExitCodeFor(exported) == ExitCode::kBadInput;
    if (lost && !status.ok()) LogError("the run has ended", {{"error", Describe(status)}});
    if (lost || status.ok()) status = exported;
  }
  http.reset();
  run->EndCopies();
  server->Shutdown(budget.Share(kCallsGrace));
  run->Stop();
  return status;
}

}  // namespace signvote
