#pragma once
// Process-wide matters that every main() shares: allocator settings, signals, versions.

#include <cstdint>
#include <string>

#include "common/clock.h"

namespace signvote {

// "0.1.0"; the project's version, also sent in the version negotiation for people to read.
const char* SoftwareVersion();

// Sets glibc malloc's M_MMAP_THRESHOLD 32 MiB, M_TRIM_THRESHOLD 2000 MiB and M_TOP_PAD 64 MiB, all
// three together: with the defaults gRPC streaming ran at a third of the speed
// (docs/performance.md). Call first in main().
void TuneMalloc();

// From now on SIGTERM and SIGINT set a flag instead of ending the process; SIGPIPE is ignored. A
// second SIGINT or SIGTERM ends the process at once with the signal's default action. Call before
// any thread starts.
void InstallStopSignals();
bool StopRequested();
// Blocks until a stop is requested or `timeout` passes; returns StopRequested().
bool WaitForStop(Duration timeout);
// What a stop signal does, without the signal; for tests and internal shutdown. Async-signal-safe.
void RequestStop();

// From now on SIGHUP asks for a reload instead of ending the process.
void InstallReloadSignal();
// Whether SIGHUP came since the last call.
bool TakeReloadRequest();

// From now on the calling thread leaves the processor to the program's other threads when they want
// it (nice +10).
void YieldToOtherThreads();
// From now on the calling thread runs when no other thread of the machine wants the processor
// (SCHED_IDLE).
void RunWhenIdle();

// Resident set size in bytes (/proc/self/status VmRSS), 0 when unknown.
uint64_t ResidentBytes();
double ProcessCpuSeconds();

}  // namespace signvote
