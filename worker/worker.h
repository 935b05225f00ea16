#pragma once
// The worker as a library: everything between a parsed command line and an exit code.

#include <functional>
#include <stop_token>

#include "absl/status/status.h"
#include "worker/flags.h"

namespace signvote {

// What a person may ask of a running worker from outside.
struct WorkerSignals {
  std::stop_token stop;
  // Asked once a round; true once for each time that it was asked for.
  // A copy of the replica, beside --save; at the end --save itself.
  std::function<bool()> take_save;
  std::function<bool()> take_reopen;  // --round-log shall be opened again
};

// Trains as one worker of a run, or runs the self-test, until it is finished or `stop` is
// requested: the round in progress is finished first. What flags ask for is written however the
// training ends; a replica that cannot be is held (common/hold.h) once the run was left.
// Threads: blocks the calling thread. A request of `stop` may come from any thread.
// Failure: one line with the exit code that docs/operations.md lists.
absl::Status RunWorker(const WorkerFlags& flags, const WorkerSignals& signals);

}  // namespace signvote
