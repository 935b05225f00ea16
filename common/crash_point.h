#pragma once
// Places at which a test has a process end as SIGKILL from outside would end it: tests/crash. The
// environment variable SIGNVOTE_CRASH_AT names one and its pass, the first is 1:
//
//   SIGNVOTE_CRASH_AT=journal.commit-written:3
//
// Only builds for tests (SIGNVOTE_CRASH_POINTS) look at it. In others this is a call of an empty function,
// at places that write to disks or networks anyway.

#include <string_view>

namespace signvote {

// Threads: any, also those that may wait for nothing. A variable that cannot be read aborts.
void CrashPoint(std::string_view name);

}  // namespace signvote
