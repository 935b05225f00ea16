#pragma once
// The worker as a library: everything between a parsed command line and an exit code.

#include <stop_token>

#include "absl/status/status.h"
#include "worker/flags.h"

namespace signvote {

// Trains as one worker of a run, or runs the self-test, until it is finished or `stop` is
// requested: the round in progress is finished first, and what flags ask for is written.
// Threads: blocks the calling thread. A request of `stop` may come from any thread.
// Failure: one line with the exit code that docs/operations.md lists.
absl::Status RunWorker(const WorkerFlags& flags, std::stop_token stop);

}  // namespace signvote
