#pragma once
// What `signvote lab run` does: every combination of a scenario's file, one after the other, and the report.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "lab/run/processes.h"
#include "lab/run/programs.h"

namespace signvote::lab {

struct RunLabFlags {
  std::string file;                   // the scenario
  std::string folder;                 // where results go; empty: beside the file, named after it
  std::vector<std::string> settings;  // of --set
  double patience_seconds = 180;
  bool dry_run = false;
  std::string progress = "lines";
};

// `print` gets the text of --help, --version or --describe when one of them was given, and is left alone
// otherwise. Failure: one line with exit code kUsage.
absl::Status ParseRunLabFlags(int argc, const char* const* argv, FileSystem* fs, RunLabFlags* flags,
                              std::string* print);

struct RunLabHost {
  FileSystem* fs = nullptr;
  Clock* clock = nullptr;
  ProgramPaths programs;
  std::function<std::unique_ptr<Processes>()> make_processes;  // for one run, which kills them
  std::function<bool(Duration)> wait;                          // true: a stop was asked for
  std::function<void(const std::string&)> print;               // to standard output
};

// Threads: blocks until every run is done, or a stop was asked for. A run that was stopped is reported as
// far as it came.
// Failure: what ended a run, of which there is a report all the same; one line with the exit code that
//          docs/operations.md lists. kReplicaMismatch: a run whose replicas are not equal at its end.
absl::Status RunLabScenarios(const RunLabFlags& flags, const RunLabHost& host);

}  // namespace signvote::lab
