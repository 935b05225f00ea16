#pragma once
// The command line of signvote-lab: one of its commands. docs/lab.md.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/file_system.h"
#include "common/log.h"
#include "lab/tasks/task.h"

namespace signvote::lab {

enum class LabCommand { kTrain, kSweep, kTasks, kMethods };

struct LabFlags {
  LabCommand command = LabCommand::kTrain;

  // kTrain
  TaskOptions task;
  uint32_t workers = 1;
  uint32_t accumulate = 1;
  std::string report;                     // file; empty: none
  std::vector<std::string> server_flags;  // for ReadRunFlags()

  // kSweep
  std::string file;    // what to sweep
  std::string folder;  // where results lie; empty: beside the file, named after it
  uint32_t jobs = 0;   // runs at a time; 0: as many as there are cores
  bool dry_run = false;

  // kTrain, kSweep
  std::string progress = "auto";
  LogOptions log{.level = LogLevel::kWarning};
};

// `print` gets the text of --help, --version or --describe when one of them was given, and is left alone
// otherwise. Failure: one line with exit code kUsage.
absl::Status ParseLabFlags(int argc, const char* const* argv, FileSystem* fs, LabFlags* flags,
                           std::string* print);

}  // namespace signvote::lab
