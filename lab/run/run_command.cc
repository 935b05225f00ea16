#include "lab/run/run_command.h"

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/flags/flags.h"
#include "common/process.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "lab/run/conductor.h"
#include "lab/run/run_page.h"
#include "lab/run/run_report.h"
#include "lab/run/scenario.h"

namespace signvote::lab {
namespace {

constexpr uint64_t kFileBytesMax = 1 << 20;
constexpr uint64_t kLogBytesMax = uint64_t{1} << 30;
constexpr uint32_t kFileMode = 0644, kFolderMode = 0755;

std::string FolderOf(const RunLabFlags& flags) {
  if (!flags.folder.empty()) return flags.folder;
  std::string folder = flags.file;
  if (folder.ends_with(".toml")) folder.resize(folder.size() - 5);
  return folder + "-run";
}

std::string TitleOf(const std::string& file) { return file.substr(file.find_last_of('/') + 1); }

// Logs of another run would be taken for this one's.
absl::Status RequireEmpty(FileSystem* fs, const std::string& folder) {
  const auto files = fs->ListFiles(folder);
  if (absl::IsNotFound(files.status())) return absl::OkStatus();
  SIGNVOTE_RETURN_IF_ERROR(WithContext(files.status(), "--out"));
  if (files->empty()) return absl::OkStatus();
  return WithExitCode(
      absl::AlreadyExistsError(absl::StrCat("--out ", folder, " is not empty: ", files->front(),
                                            " is there; give another folder, or remove it")),
      ExitCode::kBadInput);
}

std::string TextOrNone(FileSystem* fs, const std::string& path) {
  const auto text = fs->ReadFile(path, kLogBytesMax);
  return text.ok() ? *text : "";
}

// Of the model that the server left; nullopt: none.
std::optional<ReplicaState> ServerReplica(FileSystem* fs, const std::string& path) {
  const auto file = SafetensorsFile::Open(fs, path);
  if (!file.ok()) return std::nullopt;
  ReplicaState state;
  const auto& metadata = (*file)->metadata();
  const auto round = metadata.find("signvote.round");
  if (round == metadata.end() || !absl::SimpleAtoi(round->second, &state.round))
    return std::nullopt;
  std::vector<float> values;
  for (const SafetensorsFile::Tensor& tensor : (*file)->tensors()) {
    const size_t before = values.size();
    values.resize(before + tensor.count());
    tensor.WidenInto(0, std::span(values).subspan(before));
  }
  state.digest = absl::StrFormat("%016x", ReplicaDigest(values.data(), 0, values.size()));
  return state;
}

RunInputs InputsOf(FileSystem* fs, const Scenario& scenario, const RunFolder& folder,
                   const RunRecord& record) {
  RunInputs inputs{.name = NameOf(scenario),
                   .chosen = scenario.chosen,
                   .record = record,
                   .round_log = TextOrNone(fs, folder.RoundLog()),
                   .server = ServerReplica(fs, folder.Model())};
  for (const RecordedProcess& process : record.processes) {
    inputs.worker_logs[process.name] = TextOrNone(fs, folder.WorkerLog(process.name));
    const std::string report = TextOrNone(fs, folder.WorkerReport(process.name));
    if (!report.empty()) inputs.worker_reports[process.name] = report;
  }
  return inputs;
}

class ScenarioRuns {
 public:
  ScenarioRuns(const RunLabFlags& flags, const RunLabHost& host)
      : flags_(flags), host_(host), folder_(FolderOf(flags)) {}

  absl::Status Run(const std::vector<Scenario>& scenarios) {
    SIGNVOTE_RETURN_IF_ERROR(RequireEmpty(host_.fs, folder_));
    absl::Status failed;
    for (const Scenario& scenario : scenarios) {
      const std::string name = NameOf(scenario);
      if (!name.empty()) Tell(name);
      const absl::Status ran = RunOne(scenario, name.empty() ? folder_ : folder_ + "/" + name);
      if (!ran.ok()) failed = name.empty() ? ran : WithContext(ran, name);
      if (!ran.ok() || stopped_) break;
    }
    if (reports_.empty()) return failed;
    // One run's own report.json lies in this folder already.
    if (scenarios.size() > 1)
      SIGNVOTE_RETURN_IF_ERROR(Write(folder_ + "/report.json", ReportsJson(reports_)));
    SIGNVOTE_RETURN_IF_ERROR(
        Write(folder_ + "/report.html", RunPage(TitleOf(flags_.file), reports_)));
    host_.print(absl::StrCat(folder_, "/report.html: what came of it\n"));
    return failed;
  }

 private:
  void Tell(const std::string& line) const {
    if (flags_.progress != "off") host_.print(line + "\n");
  }

  absl::Status Write(const std::string& path, const std::string& text) const {
    return WriteFileAtomically(host_.fs, path, text, kFileMode);
  }

  absl::Status RunOne(const Scenario& scenario, const std::string& path) {
    SIGNVOTE_RETURN_IF_ERROR(WithContext(host_.fs->MakeDirectories(path, kFolderMode), "--out"));
    const RunFolder folder{path};
    RunRecord record;
    absl::Status ran;
    {
      const std::unique_ptr<Processes> processes = host_.make_processes();
      Conductor conductor(
          {.fs = host_.fs,
           .clock = host_.clock,
           .processes = processes.get(),
           .wait = host_.wait,
           .tell = [this](const std::string& line) { Tell(line); }},
          {.programs = host_.programs, .patience = FromSeconds(flags_.patience_seconds)}, scenario,
          folder);
      ran = conductor.Run();
      record = conductor.record();
    }
    stopped_ = record.outcome == "stopped";
    if (absl::IsCancelled(ran)) {
      host_.print("stopped before the first commit\n");
      return absl::OkStatus();
    }
    auto report = MakeRunReport(InputsOf(host_.fs, scenario, folder, record));
    if (!report.ok()) return ran.ok() ? report.status() : ran;
    SIGNVOTE_RETURN_IF_ERROR(Write(path + "/report.json", ReportJson(*report)));
    SIGNVOTE_RETURN_IF_ERROR(Write(path + "/rounds.csv", RoundsCsv(*report)));
    SIGNVOTE_RETURN_IF_ERROR(Write(path + "/events.csv", EventsCsv(*report)));
    host_.print(
        absl::StrFormat("%s: %d rounds in %.1f s, work kept %.2f %%, goodput %.1f %%, %d lost "
                        "commits, replicas %s\n",
                        report->outcome, report->rounds, report->seconds, 100 * report->work_kept,
                        100 * report->goodput, report->lost_commits,
                        report->digests.empty()  ? "not compared"
                        : report->replicas_equal ? "equal"
                                                 : "NOT EQUAL"));
    const bool equal = report->replicas_equal;
    reports_.push_back(*std::move(report));
    if (!ran.ok() || equal) return ran;
    return WithExitCode(absl::InternalError(absl::StrCat("the replicas are not equal; ", path,
                                                         "/report.json has their digests")),
                        ExitCode::kReplicaMismatch);
  }

  const RunLabFlags& flags_;
  const RunLabHost& host_;
  const std::string folder_;
  std::vector<RunReport> reports_;
  bool stopped_ = false;
};

}  // namespace

absl::Status ParseRunLabFlags(int argc, const char* const* argv, FileSystem* fs, RunLabFlags* flags,
                              std::string* print) {
  CLI::App app(
      "signvote-lab-run: run an elastic experiment that a file describes, as processes of this "
      "machine, and report what came of it.\nExit codes: docs/operations.md; files: docs/lab.md",
      "signvote-lab-run");
  app.set_version_flag("--version", absl::StrCat("signvote-lab-run ", SoftwareVersion()));
  app.add_option("TOML", flags->file, "file that says who takes part, and what happens when")
      ->type_name("FILE")
      ->required()
      ->check(Kind(ValueKind::kFile));
  app.add_option("--out", flags->folder,
                 "folder for logs and the report, empty or not there yet [TOML without .toml, and "
                 "-run]")
      ->type_name("DIR")
      ->check(Kind(ValueKind::kNewFolder));
  app.add_option("--set", flags->settings,
                 "KEY=VALUE in place of what the file says, with dots in the key "
                 "(churn.mean_life=30); repeatable")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)
      ->check(Kind(ValueKind::kText));
  app.add_flag("--dry-run", flags->dry_run,
               "print the commands for machines of one's own, and what happens when, and end");
  app.add_option("--patience", flags->patience_seconds,
                 "seconds without a commit, while workers are there, after which a run has failed")
      ->capture_default_str()
      ->check(NumberBetween(1, 1e6));
  app.add_option("--progress", flags->progress, "lines, off")
      ->capture_default_str()
      ->check(CLI::IsMember({"lines", "off"}));
  return ParseFlags(&app, argc, argv, fs, print);
}

absl::Status RunLabScenarios(const RunLabFlags& flags, const RunLabHost& host) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string text, host.fs->ReadFile(flags.file, kFileBytesMax));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<Scenario> scenarios,
                            ParseScenarios(text, flags.file, flags.settings));
  if (!flags.dry_run) return ScenarioRuns(flags, host).Run(scenarios);
  for (size_t i = 0; i < scenarios.size(); ++i)
    host.print(absl::StrCat(i > 0 ? "\n" : "", CommandsForMachines(scenarios[i])));
  return absl::OkStatus();
}

}  // namespace signvote::lab
