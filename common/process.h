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
// (docs/performance.md). What it has freed a program then keeps, up to 2 GB. Where the environment sets
// one of them (MALLOC_TRIM_THRESHOLD_ and the like, or GLIBC_TUNABLES), all are the environment's. Call
// first in main().
void TuneMalloc();

// Opens those of the descriptors 0, 1 and 2 that are closed on /dev/null, so that no file or socket
// that is opened later becomes standard output or error. Call first in main().
void OpenStandardDescriptors();

// From now on a write beyond the file-size limit is an error (EFBIG) and not the end. For every
// program; part of InstallStopSignals().
void IgnoreFileSizeSignal();

// The signals of a program that runs for long; docs/operations.md, "Signals". Call before any thread
// starts. From now on
//   SIGINT, SIGTERM, SIGQUIT  ask to stop; the second of them ends the process at once with the
//                             signal's default action
//   SIGHUP, SIGXCPU           ask to stop, however often they come: a terminal and its shell both
//                             send the first, the kernel sends the second once a second. SIGHUP stays
//                             ignored where it is (nohup)
//   SIGUSR1, SIGUSR2          ask for a copy of the model, and for log files to be opened again
//   SIGPIPE, SIGXFSZ          are ignored: writes return EPIPE and EFBIG
void InstallStopSignals();
bool StopRequested();
// Blocks until a stop is requested or `timeout` passes; returns StopRequested().
bool WaitForStop(Duration timeout);
// What a stop signal does, without the signal; for tests and internal shutdown. Async-signal-safe.
void RequestStop();
// Whether SIGUSR1, or SIGUSR2, came since the last call. Threads: any.
bool TakeSaveRequest();
bool TakeReopenRequest();

// From now on SIGHUP asks for a reload, unless it says that the terminal is gone that this process
// was started from: then it asks to stop, as above. The kernel's own SIGHUP says so, and one of this
// session's shell once the terminal is gone. Under nohup it always asks for a reload. After
// InstallStopSignals().
void InstallReloadSignal();
// Whether SIGHUP asked for a reload since the last call. Threads: any.
bool TakeReloadRequest();

// From now on the calling thread leaves the processor to the program's other threads when they want
// it (nice +10).
void YieldToOtherThreads();
// From now on the calling thread runs when no other thread of the machine wants the processor
// (SCHED_IDLE).
void RunWhenIdle();

// Raises this process's soft limit of open descriptors to its hard one: poll and epoll are used here,
// nothing that breaks above 1,024. Returns the limit that holds from now on.
uint64_t RaiseDescriptorLimit();
// How many it has open, 0 when unknown; and how many it may have.
uint64_t OpenDescriptors();
uint64_t DescriptorLimit();

// Resident set size in bytes (/proc/self/status VmRSS), 0 when unknown.
uint64_t ResidentBytes();
double ProcessCpuSeconds();

}  // namespace signvote
