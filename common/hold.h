#pragma once
// What must not be lost because a disk does not take it now: it is held, and written again.

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "common/clock.h"

namespace signvote {

struct HoldOptions {
  std::string what;    // begins the log's line, as in "the model is not written"
  std::string remedy;  // ends it: what a person can do meanwhile
  Duration linger{};   // how long it is held
  std::function<bool()> stop_requested;
  std::function<bool()> take_save;  // whether it shall be tried again at once
};

// Calls `write` until it returns OK, until `linger` has passed, or until a stop is requested that was
// not at the beginning: at intervals that grow from 5 s to a minute, at once when asked. Each failure
// that is not the last is told in the log. Returns what the last call returned. With a linger of 0
// there is one call; and none follows one that failed for what nobody can mend meanwhile: anything but a
// status with exit code kBadInput, which the file system's and those about files have, and DATA_LOSS (what
// is to be written cannot be read any more).
// Threads: `write` runs on the caller's thread, which waits here.
absl::Status WriteOrHold(Clock* clock, const HoldOptions& options,
                         const std::function<absl::Status()>& write);

}  // namespace signvote
