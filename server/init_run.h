#pragma once
// The run that a worker's save carries (common/saved_run.h), for a server that is to go on with it
// (--init, --init-as).

#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "server/flags.h"
#include "server/run/run_state.h"

namespace signvote {

// The run as it stands in `flags.init_path`; the log says so. nullopt: a new run begins with these
// parameters, because --init-as says so, or with `auto` because the file carries no run, or one that is
// over. Errors carry the exit code kBadInput and the remedy: a file that carries no run with
// `continue`; settings that are not the run's; a replica, or x0, without its digest; contents that no run
// has. Those of Checkpoint::Open() as they are. CANCELLED: `give_up` said so.
absl::StatusOr<std::optional<run::RunState>> TakeUpInitRun(FileSystem* fs, const Clock& clock,
                                                           const ServerFlags& flags,
                                                           const std::function<bool()>& give_up);

}  // namespace signvote
