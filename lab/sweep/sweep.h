#pragma once
// Runs what a file names, several runs at a time, until nothing of it is left to do.

#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lab/cell.h"

namespace signvote::lab {

struct SweepOptions {
  std::string file;
  std::string folder;  // results.csv, cells.csv, a curve of each run in curves/, and what locks it
  uint32_t jobs = 1;
};

// How far it is.
struct SweepProgress {
  size_t done = 0, running = 0;
  size_t known = 0;                   // of what is known to be needed; a grid may want more
  double seconds_left = 0;            // about; 0: nobody knows
  std::string last;                   // the run that ended last, and how; empty: none yet
  std::vector<std::string> warnings;  // of what the file asks for, a sentence each; always the same
};

// Threads: blocks; runs are on threads of their own. `tell` is called on the calling thread, once a
//          second and whenever a run has ended.
// Failure: the first run that fails for another reason than that it diverged ends the sweep, with its
//          name; INVALID_ARGUMENT with exit code kUsage for a file that cannot be used, before
//          anything runs; FAILED_PRECONDITION with exit code kBadInput: another sweep fills the
//          folder. CANCELLED: a stop was asked for; runs under way are lost.
absl::Status RunSweep(const CellHost& host, const SweepOptions& options,
                      const std::function<void(const SweepProgress&)>& tell,
                      const std::stop_token& stop);

// What RunSweep() would begin with.
struct SweepListing {
  std::vector<std::string> missing;  // names of runs, in order
  size_t done = 0;
  bool grids = false;  // some of them are of a grid, which wants more when these are done
};
// Runs and writes nothing. Failure as RunSweep(), with whatever is wrong in the file.
absl::StatusOr<SweepListing> ListSweep(const CellHost& host, const SweepOptions& options);

}  // namespace signvote::lab
