#pragma once
// What a program does when it gets no memory (`ulimit -v`, a machine that promises no more than it
// has). Left alone, the first `new` that fails ends the process, and the model that it holds with it.
//
// Not covered: a malloc() of a library in C++ or C that asks for memory by itself (gRPC ends the
// process when it gets none), and the kernel's end of processes on a machine that promises more than
// it has. Copies on a disk (--save-every, --export-every) are for those.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace signvote {

// Enough for what a stop takes: the open round, the sessions' end, a file's header and pieces.
inline constexpr size_t kMemoryReserveBytes = size_t{64} << 20;

// Sets address space aside; it costs no memory, since nobody writes to it. From now on the first `new`
// that gets no memory gives the reserve back, asks the program to stop as SIGTERM does, so that what
// was trained is written, and is tried again. One that fails for good after that says so in one line
// on standard error and ends the process with kNoMemory. A process whose limit has no room for the
// reserve runs without. Call once, in main(), behind InstallStopSignals() and before any thread starts.
void ReserveMemory(size_t bytes = kMemoryReserveBytes);

// RESOURCE_EXHAUSTED with exit code kNoMemory once the reserve was needed, OK before: for the end of
// main().
absl::Status MemoryReserveStatus();

// Makes `values` n zeros, where the program can do without: RESOURCE_EXHAUSTED says how many bytes
// there are not, and the reserve is left alone. `values` is empty then.
absl::Status TryResize(std::vector<float>* values, uint64_t n);

}  // namespace signvote
