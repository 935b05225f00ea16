#include "lab/flags.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/flags/flags.h"
#include "common/process.h"
#include "common/status.h"
#include "lab/cell.h"

namespace signvote::lab {
namespace {

std::string TaskWords() {
  return absl::StrJoin(Tasks(), ", ", [](std::string* out, const TaskInfo& task) {
    absl::StrAppend(out, task.name);
  });
}

// As they are typed.
struct Typed {
  std::string log_level = "warning", log_format = "text";
};

void AddOutput(CLI::App* sub, LabFlags* flags, Typed* typed) {
  sub->add_option("--progress", flags->progress, "auto, terminal, lines, off")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "terminal", "lines", "off"}));
  sub->add_option("--log-level", typed->log_level, "debug, info, warning, error")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  sub->add_option("--log-format", typed->log_format, "text or json, on standard error")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
}

void AddTrain(CLI::App* sub, LabFlags* flags, Typed* typed) {
  // Flags of the run are signvote-server's: whatever it can do, this can.
  sub->allow_extras();
  sub->footer(
      "Every other flag of a run is signvote-server's (Run, Method): --rule, --direction, "
      "--max-rounds, --seed, --export, …");
  sub->add_option("--task", flags->task.name, absl::StrCat("what is trained: ", TaskWords()))
      ->required()
      ->check(Kind(ValueKind::kText));
  sub->add_option("--workers", flags->workers, "virtual workers")
      ->capture_default_str()
      ->check(UnsignedBetween(1, kLocalWorkersMax));
  sub->add_option(
         "--data", flags->task.data,
         "in place of what is made up: text, a file or folder; cnn, vit, a folder of pictures")
      ->type_name("PATH")
      ->check(Kind(ValueKind::kPath));
  sub->add_option("--batch", flags->task.rows, "rows of a minibatch; 0: the task's own")
      ->capture_default_str()
      ->check(UnsignedBetween(0, kRowsMax));
  sub->add_option("--accumulate", flags->accumulate, "minibatches whose mean is one gradient")
      ->capture_default_str()
      ->check(UnsignedBetween(1, 1u << 20));
  sub->add_option("--init-seed", flags->task.init_seed, "seed of the initial parameters")
      ->capture_default_str()
      ->check(AnyUnsigned());
  sub->add_option("--task-seed", flags->task.task_seed,
                  "seed of the task: teacher, plane, glyphs, text")
      ->capture_default_str()
      ->check(AnyUnsigned());
  sub->add_option("--threads", flags->task.threads, "threads of LibTorch")
      ->capture_default_str()
      ->check(UnsignedBetween(1, 1024));
  sub->add_option("--report", flags->report, "write figures of the run here, as JSON")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kNewFile));
  AddOutput(sub, flags, typed);
}

void AddSweep(CLI::App* sub, LabFlags* flags, Typed* typed) {
  sub->add_option("TOML", flags->file, "file that says what to sweep")
      ->type_name("FILE")
      ->required()
      ->check(Kind(ValueKind::kFile));
  sub->add_option("--output", flags->folder,
                  "folder for results; what is there already is not run again [TOML without .toml]")
      ->type_name("DIR")
      ->check(Kind(ValueKind::kNewFolder));
  sub->add_option("--jobs", flags->jobs, "runs at a time; 0: one on each core")
      ->capture_default_str()
      ->check(UnsignedBetween(0, 1024));
  sub->add_flag("--dry-run", flags->dry_run, "list the runs that are not done, and end");
  AddOutput(sub, flags, typed);
}

}  // namespace

absl::Status ParseLabFlags(int argc, const char* const* argv, FileSystem* fs, LabFlags* flags,
                           std::string* print) {
  CLI::App app(
      "signvote-lab: train in one process, without a server, and compare methods by the hundred.\n"
      "Exit codes: docs/operations.md; tasks and files: docs/lab.md; elastic experiments: "
      "signvote-lab-run",
      "signvote-lab");
  // A run of a sweep that diverges is a result; its warnings are a line for each worker and round.
  Typed typed, typed_sweep{.log_level = "error"};
  app.set_version_flag("--version", absl::StrCat("signvote-lab ", SoftwareVersion()));
  app.require_subcommand(1);
  const auto add = [&](const char* name, const char* help, LabCommand command) {
    CLI::App* sub = app.add_subcommand(name, help);
    sub->callback([flags, command] { flags->command = command; });
    return sub;
  };
  CLI::App* const train =
      add("train", "train with one or more virtual workers in this process", LabCommand::kTrain);
  AddTrain(train, flags, &typed);
  AddSweep(add("sweep", "run every combination of a file, resumable, and compare them",
               LabCommand::kSweep),
           flags, &typed_sweep);
  add("tasks", "list the tasks, and how long a gradient of each takes here", LabCommand::kTasks);
  add("methods", "list the short names of directions and rules, and the flags that they stand for",
      LabCommand::kMethods);
  SIGNVOTE_RETURN_IF_ERROR(ParseFlags(&app, argc, argv, fs, print));
  if (!print->empty()) return absl::OkStatus();
  flags->server_flags = train->remaining();
  const Typed& said = flags->command == LabCommand::kSweep ? typed_sweep : typed;
  SIGNVOTE_RETURN_IF_ERROR(ParseLogLevel(said.log_level, &flags->log.level));
  return ParseLogFormat(said.log_format, &flags->log.format);
}

}  // namespace signvote::lab
