#include "lab/commands.h"

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/direction_config.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/status.h"
#include "lab/sweep/methods.h"
#include "lab/sweep/sweep.h"
#include "worker/train/batch_view.h"

namespace signvote::lab {
namespace {

constexpr Duration kTellEvery = std::chrono::seconds(1);
constexpr Duration kLineEvery = std::chrono::seconds(10);
constexpr uint32_t kFileMode = 0644;

nlohmann::ordered_json LossJson(const std::optional<HeldOutLoss>& loss) {
  if (!loss.has_value()) return nullptr;
  return {{"round", loss->round.value()}, {"loss", loss->loss}, {"error", loss->error}};
}

std::string ReportJson(const LabFlags& flags, const CellResult& result, const absl::Status& ended) {
  const LocalReport& r = result.report;
  nlohmann::ordered_json json;
  json["task"] = flags.task.name;
  json["data"] = result.data;
  json["coordinates"] = result.coordinates;
  json["workers"] = flags.workers;
  json["outcome"] = !ended.ok() ? Describe(ended) : r.stopped ? "stopped" : "finished";
  json["rounds"] = r.rounds;
  json["main_rounds"] = r.main_rounds;
  json["minibatches"] = r.minibatches;
  json["targets"] = r.targets;
  json["held_out_first"] = LossJson(r.held_out_first);
  json["held_out_last"] = LossJson(r.held_out_last);
  json["seconds"] = r.seconds;
  json["eval_seconds"] = r.eval_seconds;
  json["bytes_up"] = r.bytes_up;
  json["bytes_down"] = r.bytes_down;
  json["digest"] = nullptr;
  if (r.digest.has_value()) json["digest"] = absl::StrFormat("%016x", *r.digest);
  return json.dump(2) + "\n";
}

std::string LossText(const std::optional<HeldOutLoss>& loss) {
  return loss.has_value() ? absl::StrFormat("%.4f", loss->loss) : "none";
}

// The run's files are read by the server's flags, which know nothing of this one.
absl::Status RequireOwnReport(const LabFlags& flags, const ServerFlags& server, FileSystem* fs) {
  for (const auto& [flag, path] :
       {std::pair("--export", &server.exports.path),
        std::pair("--round-log", &server.round_log_path),
        std::pair("--event-log", &server.event_log_path), std::pair("--init", &server.init_path)}) {
    if (path->empty() || !fs->IsSameFile(flags.report, *path)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--report ", flags.report, " is the file of ", flag,
                     " too, and would be lost for it; give each a file of its own"));
  }
  return absl::OkStatus();
}

absl::Status Train(const LabFlags& flags, const LabHost& host) {
  CellOptions options{.task = flags.task, .workers = flags.workers, .accumulate = flags.accumulate};
  SIGNVOTE_ASSIGN_OR_RETURN(options.server,
                            ReadRunFlags(host.cell.fs, flags.server_flags, flags.workers));
  if (!flags.report.empty()) {
    SIGNVOTE_RETURN_IF_ERROR(RequireOwnReport(flags, options.server, host.cell.fs));
    SIGNVOTE_RETURN_IF_ERROR(WithContext(RequireWritable(host.cell.fs, flags.report), "--report"));
  }
  for (const std::string& warning : DirectionWarnings(options.server.run.direction))
    LogWarning(warning);
  const bool terminal = flags.progress == "terminal" || (flags.progress == "auto" && host.terminal);
  Clock* const clock = host.cell.clock;
  const Duration every = terminal ? kTellEvery : kLineEvery;
  Time tell = clock->Now() + every;
  CellResult result;
  std::optional<HeldOutLoss> held_out;
  const absl::Status trained = RunCell(
      host.cell, options,
      [&](const LocalRound& round) {
        if (round.held_out.has_value()) held_out = round.held_out;
        if (flags.progress == "off" || clock->Now() < tell) return;
        tell = clock->Now() + every;
        host.print(absl::StrFormat("%sround %d  loss %.4f  held out %s  stepsize %.3g  %.1f s%s",
                                   terminal ? "\r\x1b[K" : "", round.round.value(), round.loss,
                                   LossText(held_out), static_cast<double>(round.stepsize),
                                   round.seconds, terminal ? "" : "\n"));
      },
      host.stop, &result);
  if (terminal && flags.progress != "off") host.print("\r\x1b[K");
  if (!flags.report.empty()) {
    const absl::Status reported =
        WithContext(WriteFileAtomically(host.cell.fs, flags.report,
                                        ReportJson(flags, result, trained), kFileMode),
                    "--report");
    if (trained.ok()) SIGNVOTE_RETURN_IF_ERROR(reported);
  }
  SIGNVOTE_RETURN_IF_ERROR(trained);
  const LocalReport& r = result.report;
  host.print(absl::StrFormat("%s: %d rounds, held-out loss %s to %s, %.1f s, digest %016x\n",
                             flags.task.name, r.rounds, LossText(r.held_out_first),
                             LossText(r.held_out_last), r.seconds, r.digest.value_or(0)));
  return absl::OkStatus();
}

// "3 h 20 min", "4 min", "12 s".
std::string TimeText(double seconds) {
  if (seconds < 90) return absl::StrFormat("%.0f s", seconds);
  const auto minutes = static_cast<int64_t>(seconds / 60 + 0.5);
  if (minutes < 90) return absl::StrFormat("%d min", minutes);
  return absl::StrFormat("%d h %d min", minutes / 60, minutes % 60);
}

std::string BarText(const SweepProgress& progress) {
  constexpr size_t kCells = 24;
  const size_t full = progress.known == 0 ? kCells : progress.done * kCells / progress.known;
  std::string text =
      absl::StrFormat("[%s%s] %d of %d runs", std::string(full, '#'),
                      std::string(kCells - full, '.'), progress.done, progress.known);
  if (progress.seconds_left > 0)
    absl::StrAppend(&text, ", about ", TimeText(progress.seconds_left), " left");
  return text;
}

absl::Status ListRuns(const SweepOptions& options, const LabHost& host) {
  SIGNVOTE_ASSIGN_OR_RETURN(const SweepListing listing, ListSweep(host.cell, options));
  for (const std::string& run : listing.missing) host.print(run + "\n");
  host.print(absl::StrCat(listing.missing.size(), " runs, and ", listing.done, " are done",
                          listing.grids ? "; each grid then goes on about its best" : "", "\n"));
  return absl::OkStatus();
}

absl::Status SweepCommand(const LabFlags& flags, const LabHost& host) {
  SweepOptions options{.file = flags.file, .folder = flags.folder, .jobs = flags.jobs};
  if (options.folder.empty()) {
    options.folder = flags.file;
    if (options.folder.ends_with(".toml")) options.folder.resize(options.folder.size() - 5);
    if (options.folder == flags.file) options.folder += "-results";
  }
  if (flags.dry_run) return ListRuns(options, host);
  if (options.jobs == 0) options.jobs = std::max(1u, std::thread::hardware_concurrency());
  const bool terminal = flags.progress == "terminal" || (flags.progress == "auto" && host.terminal);
  std::string last;
  bool warned = false;
  const auto tell = [&](const SweepProgress& progress) {
    if (!std::exchange(warned, true))
      for (const std::string& warning : progress.warnings) host.print(warning + "\n");
    if (flags.progress == "off") return;
    if (progress.last != last) {
      last = progress.last;
      host.print(absl::StrCat(terminal ? "\r\x1b[K" : "", last,
                              terminal ? "" : absl::StrCat("  ", BarText(progress)), "\n"));
    }
    if (terminal) host.print(absl::StrCat("\r\x1b[K", BarText(progress)));
  };
  const absl::Status swept = RunSweep(host.cell, options, tell, host.stop);
  if (terminal && flags.progress != "off") host.print("\r\x1b[K");
  // As a server that was stopped: in good order, and not done.
  if (absl::IsCancelled(swept)) {
    host.print(absl::StrCat(options.folder, "/results.csv: ", std::string(swept.message()), "\n"));
    return absl::OkStatus();
  }
  SIGNVOTE_RETURN_IF_ERROR(swept);
  host.print(absl::StrCat(options.folder, "/results.csv: every run is done\n"));
  SIGNVOTE_RETURN_IF_ERROR(WithContext(host.make_report(options.folder),
                                       "the results are complete, and have no report"));
  host.print(absl::StrCat(options.folder, "/report.html: what came of them\n"));
  return absl::OkStatus();
}

// Milliseconds of one gradient, the median of some.
absl::StatusOr<double> GradientMilliseconds(const Task& task, Clock* clock) {
  constexpr int kTimes = 15;
  Batch batch;
  std::vector<double> took;
  for (int k = 0; k < kTimes; ++k) {
    const Time start = clock->Now();
    SIGNVOTE_RETURN_IF_ERROR(
        task.data->TrainBatch({.data_step = DataStep(static_cast<uint64_t>(k))}, &batch));
    SIGNVOTE_RETURN_IF_ERROR(task.model->BeginStep(ReplicaSlot::kCurrent));
    SIGNVOTE_RETURN_IF_ERROR(task.model->Forward(ReplicaSlot::kCurrent, ViewOf(batch)).status());
    SIGNVOTE_RETURN_IF_ERROR(task.model->Backward(1.0f, nullptr));
    took.push_back(ToSeconds(clock->Now() - start) * 1e3);
  }
  std::nth_element(took.begin(), took.begin() + kTimes / 2, took.end());
  return took[kTimes / 2];
}

absl::Status ListTasks(const LabHost& host) {
  for (const TaskInfo& info : Tasks()) {
    const absl::StatusOr<Task> task = MakeTask(host.cell.fs, {.name = info.name}, host.cell.torch);
    if (absl::IsUnimplemented(task.status())) {
      host.print(absl::StrFormat("%-9s %s (needs LibTorch)\n", info.name, info.text));
      continue;
    }
    SIGNVOTE_RETURN_IF_ERROR(task.status());
    SIGNVOTE_ASSIGN_OR_RETURN(const double ms, GradientMilliseconds(*task, host.cell.clock));
    host.print(absl::StrFormat("%-9s %s; %d coordinates, %.2f ms a gradient\n", info.name,
                               info.text, task->model->layout().coordinates(), ms));
  }
  return absl::OkStatus();
}

void ListMethods(const LabHost& host) {
  for (const auto& [heading, methods] :
       {std::pair("directions", NamedDirections()), std::pair("rules", NamedRules())}) {
    host.print(absl::StrCat(heading, "\n"));
    for (const Method& method : methods) {
      std::string flags;
      for (const MethodFlag& flag : method.flags) {
        absl::StrAppend(&flags, " --", std::string(flag.name));
        // As a shell takes it.
        const char* const quote = (flag.value == "*") ? "'" : "";
        if (flag.value != "true")
          absl::StrAppend(&flags, " ", quote, std::string(flag.value), quote);
      }
      host.print(absl::StrFormat("  %-20s%s\n", method.name, flags));
    }
  }
}

}  // namespace

absl::Status RunLab(const LabFlags& flags, const LabHost& host) {
  switch (flags.command) {
    case LabCommand::kTrain:
      return Train(flags, host);
    case LabCommand::kSweep:
      return SweepCommand(flags, host);
    case LabCommand::kTasks:
      return ListTasks(host);
    case LabCommand::kMethods:
      ListMethods(host);
      return absl::OkStatus();
  }
  SIGNVOTE_CHECK(false);
}

}  // namespace signvote::lab
