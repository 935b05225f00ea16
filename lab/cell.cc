#include "lab/cell.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/line_log.h"
#include "common/memory_budget.h"
#include "common/model_file.h"
#include "common/payload_plan.h"
#include "common/status.h"
#include "server/init_file.h"
#include "server/stepsize/rule_flags.h"

namespace signvote::lab {
namespace {

// Of the server's flags, those that are about a network or about a process that others talk to.
constexpr std::string_view kForeignFlags[] = {"--listen",
                                              "--http",
                                              "--tls-ca",
                                              "--tls-certificate",
                                              "--tls-key",
                                              "--tokens",
                                              "--insecure",
                                              "--insecure-bind",
                                              "--port-file",
                                              "--workers-min",
                                              "--wait-timeout",
                                              "--upload-timeout",
                                              "--session-buffer-bytes",
                                              "--catch-up-bytes",
                                              "--export-every",
                                              "--export-keep",
                                              "--linger",
                                              "--linger-export",
                                              "--tally-threads",
                                              "--test-applier-delay-ms",
                                              "--test-applier-delayed",
                                              "--print-config",
                                              "--config",
                                              "--log-level",
                                              "--log-format"};
static_assert(kLocalWorkersMax + 1 == kBallotsMax);
// As many places as a server has by itself.
constexpr uint32_t kPlaces = 64;

}  // namespace

absl::StatusOr<ServerFlags> ReadRunFlags(FileSystem* fs, const std::vector<std::string>& flags,
                                         uint32_t workers) {
  if (workers > kLocalWorkersMax) {
    return absl::InvalidArgumentError(absl::StrCat(workers, " workers are more than the ",
                                                   kLocalWorkersMax, " that a run takes"));
  }
  std::vector<std::string> texts{"signvote-lab", "--insecure", "--workers-min",
                                 absl::StrCat(workers)};
  bool places_given = false;
  for (const std::string& flag : flags) {
    const std::string_view name = std::string_view(flag).substr(0, flag.find('='));
    places_given = places_given || name == "--workers-max";
    if (std::find(std::begin(kForeignFlags), std::end(kForeignFlags), name) ==
        std::end(kForeignFlags))
      continue;
    return absl::InvalidArgumentError(absl::StrCat(
        std::string(name), " is for a server of its own, and this run has none; leave it away"));
  }
  if (!places_given)
    texts.insert(texts.end(), {"--workers-max", absl::StrCat(std::max(kPlaces, workers))});
  texts.insert(texts.end(), flags.begin(), flags.end());
  std::vector<const char*> argv;
  for (const std::string& text : texts) argv.push_back(text.c_str());
  ServerFlags out;
  SIGNVOTE_RETURN_IF_ERROR(ParseServerFlags(static_cast<int>(argv.size()), argv.data(), fs, &out));
  if (out.print.has_value())
    return absl::InvalidArgumentError("--help and --version go with no other flag");
  return out;
}

absl::Status RunCell(const CellHost& host, const CellOptions& options,
                     const VirtualWorkers::OnRound& on_round, const std::stop_token& stop,
                     CellResult* result) {
  const ServerFlags& flags = options.server;
  SIGNVOTE_ASSIGN_OR_RETURN(const Task task, MakeTask(host.fs, options.task, host.torch));
  result->data = task.data->description();
  result->coordinates = task.model->layout().coordinates();
  const std::string config_json = ModelConfigJson(task.model->config());
  const std::string& path = flags.exports.path;
  if (!path.empty()) {
    SIGNVOTE_RETURN_IF_ERROR(
        WithContext(RequireModelTarget(host.fs, path, config_json), "--export"));
  }
  LocalServerOptions server_options{.run = flags.run,
                                    .run_id = RunId::FromRandom(flags.run.seed, 1)};
  server_options.memory = [fs = host.fs] { return AvailableMemory(fs); };
  std::unique_ptr<LineLog> round_log, event_log;
  if (!flags.round_log_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(round_log, LineLog::Open(host.fs, flags.round_log_path));
    server_options.round_log = round_log.get();
  }
  if (!flags.event_log_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(event_log, LineLog::Open(host.fs, flags.event_log_path));
    server_options.event_log = event_log.get();
  }
  if (!flags.init_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(server_options.init, OpenInitFile(host.fs, flags.init_path));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalServer> server,
                            LocalServer::Create(std::move(server_options)));
  VirtualWorkers workers(
      server.get(), task.model.get(), task.data.get(), host.clock,
      {.workers = options.workers, .accumulate = options.accumulate, .eval_rows = task.eval_rows});
  workers.set_on_round(on_round);
  const absl::Status trained = workers.Run(stop);
  result->report = workers.report();
  if (server->ended()) result->run_end = server->end_status();
  if (path.empty() || server->replica() == nullptr) return trained;
  // As a server does, however the run ended.
  const absl::Status written =
      WithContext(WriteModel(host.fs, path, flags.exports.format, server->replica()->layout(),
                             server->replica()->x(), {}, config_json),
                  "--export");
  return trained.ok() ? written : trained;
}

}  // namespace signvote::lab
