#pragma once
// A run as its journal has it, for the server that takes it up.

#include <string_view>

#include "absl/status/statusor.h"
#include "server/journal/recovery.h"
#include "server/run/run_state.h"

namespace signvote::run {

// Older servers than the last so many are forgotten: whoever comes with a replica of theirs fetches the
// state.
inline constexpr size_t kEpochsKept = 64;

// The state of the epoch behind the journal's last one. `recovered` gives up its planes.
// DATA_LOSS: contents that no run has; `whose` they are. REQUIRES: recovered.run_id.
absl::StatusOr<RunState> TakeUp(journal::Recovered& recovered,
                                std::string_view whose = "the journal's state of the run");

}  // namespace signvote::run
