#pragma once
// report.html and results.md of a folder of results, made by signvote-lab-report, a Python program beside
// this one: tables by the standard library, plots by matplotlib. docs/lab.md, "Reports".

#include <string>

#include "absl/status/status.h"

namespace signvote::lab {

// Threads: blocks until it is done.
// Failure: UNAVAILABLE: it is not there, or there is no python3; INTERNAL: it failed, and said why on
//          standard error.
absl::Status MakeReport(const std::string& folder);

}  // namespace signvote::lab
