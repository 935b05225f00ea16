#pragma once
// One run in this process, from flags to figures: what `signvote lab train` does once, and
// `signvote lab sweep` many times.

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "lab/local/virtual_workers.h"
#include "lab/tasks/task.h"
#include "server/flags.h"

namespace signvote::lab {

// As many as a vote counts.
inline constexpr uint32_t kLocalWorkersMax = 1023;

// What signvote-server reads as `flags`, for a run of this process with so many workers. INVALID_ARGUMENT
// names a flag that is none, or one that is about a network which is not there; or too many workers.
absl::StatusOr<ServerFlags> ReadRunFlags(FileSystem* fs, const std::vector<std::string>& flags,
                                         uint32_t workers);

struct CellOptions {
  TaskOptions task;
  uint32_t workers = 1;
  uint32_t accumulate = 1;
  ServerFlags server;  // of ReadRunFlags()
};

// What a run touches. Threads: as its members.
struct CellHost {
  FileSystem* fs = nullptr;
  Clock* clock = nullptr;
  TorchMakers torch;
};

struct CellResult {
  LocalReport report;
  // The run itself ended so, as its server's would: OK also where it did not come to its end.
  absl::Status run_end;
  std::string data;  // what was trained on, one line
  uint64_t coordinates = 0;
};

// Trains, and writes what --export, --round-log and --event-log ask for.
// Threads: blocks; several may run at a time, each on a thread of its own.
// Failure: what ended the run; `result` is filled as far as it came.
absl::Status RunCell(const CellHost& host, const CellOptions& options,
                     const VirtualWorkers::OnRound& on_round, const std::stop_token& stop,
                     CellResult* result);

}  // namespace signvote::lab
