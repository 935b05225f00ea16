#pragma once
// The server as a library: parts built, served, stopped in reverse.

#include <functional>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "server/flags.h"

namespace signvote {

// What a person may ask of a running server from outside. Asked ten times a second.
struct ServerSignals {
  std::function<bool()> stop_requested;  // stays true
  std::function<bool()> take_reload;     // tokens and certificates shall be read again
  std::function<bool()> take_save;       // a copy of the model shall be written
  std::function<bool()> take_reopen;     // log files shall be opened again
};

// Serves one run and returns when it is over and its model is exported, or could not be for as long as
// --linger-export says. OK: finished, or stopped by a person. Any other status carries the program's
// exit code.
absl::Status Serve(const ServerFlags& flags, const ServerSignals& signals, Clock* clock,
                   FileSystem* fs);

}  // namespace signvote
