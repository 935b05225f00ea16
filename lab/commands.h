#pragma once
// What each command of signvote-lab does.

#include <functional>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "lab/cell.h"
#include "lab/flags.h"

namespace signvote::lab {

struct LabHost {
  CellHost cell;
  bool terminal = false;                          // standard output is one
  std::function<void(const std::string&)> print;  // to standard output
  std::stop_token stop;
  // Makes report.html of a folder of results. UNAVAILABLE says what is missing.
  std::function<absl::Status(const std::string& folder)> make_report;
};

// Threads: blocks until the command is done, or a stop was asked for.
// Failure: one line with the exit code that docs/operations.md lists.
absl::Status RunLab(const LabFlags& flags, const LabHost& host);

}  // namespace signvote::lab
