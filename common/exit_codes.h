#pragma once
// What a program's exit status means. One table for every program; docs/operations.md repeats it
// and a test compares.

#include "absl/status/status.h"

namespace signvote {

enum class ExitCode : int {
  kOk = 0,        // done; a drained or finished run is done
  kInternal = 1,  // a bug of ours
  kUsage = 2,     // a flag or config value is wrong
  kBadInput = 3,  // a file or data set is missing, unreadable, too small or malformed
  kRefused = 4,   // refused by the other side: token, certificate, layout, version, name, evicted
  kUnavailable = 5,  // the other side could not be reached in time
  kPortInUse = 6,    // the address to listen on is taken or not ours
  kNoDevice = 7,     // no CUDA device
  kDiverged = 8,     // no loss is finite, or no stepsize lowers it; a finite replica was exported
  kReplicaMismatch = 9,  // most workers agree with each other against the server's replica
  kWaitTimeout = 10,     // waited --wait-timeout for workers; the replica, if any, was exported
  kNoMemory = 11,        // the model does not fit the memory that this program may take
};

inline constexpr ExitCode kExitCodeMax = ExitCode::kNoMemory;

// How a server ends because of its run's end, where its workers are told and end with the same
// (proto/wire/run_end.h). Every other exit code is a program's own affair.
inline constexpr ExitCode kRunEnds[] = {ExitCode::kDiverged, ExitCode::kReplicaMismatch};
bool IsRunEnd(ExitCode code);

// Marks `status` with the exit code that it should end a program with, where the status code alone
// does not tell (a file that may not be read and a server that refuses are both PERMISSION_DENIED).
// OK stays OK.
absl::Status WithExitCode(absl::Status status, ExitCode code);

// The exit code a main() returns for a status that ended it: the one of WithExitCode(), else by
// status code:
//   INVALID_ARGUMENT → kUsage;  NOT_FOUND, DATA_LOSS, OUT_OF_RANGE → kBadInput;
//   PERMISSION_DENIED, UNAUTHENTICATED, FAILED_PRECONDITION, ALREADY_EXISTS, UNIMPLEMENTED
//     → kRefused;
//   UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED → kUnavailable;
//   any other → kInternal.
// Errors of FileSystem and SafetensorsFile carry kBadInput.
ExitCode ExitCodeFor(const absl::Status& status);

}  // namespace signvote
