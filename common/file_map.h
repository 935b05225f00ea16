#pragma once
// A map of a file that may be cut, or whose disk may fail, while it is read. Without this a read
// beyond the new end is a SIGBUS, which ends the program. (systemd does likewise, src/basic/sigbus.c.)

#include <cstddef>
#include <memory>

#include "common/file_system.h"

namespace signvote {

// Takes over [base, base + size), a private read-only map of a file, and unmaps it at the end. From
// the first call on SIGBUS within such a map puts zeros where the file is gone, marks it (cut()), and
// goes on; any other SIGBUS goes where it went before.
// Threads: thread-safe; reading, too.
std::unique_ptr<MappedFile> GuardMap(void* base, size_t size);

}  // namespace signvote
