#pragma once
// The exit codes of a run's end that its workers end with too. ToGrpc() and FromGrpc() (wire.h) carry
// them as the status's details ("8"); other exit codes are the sender's own affair.
// Format: docs/wire_format.md, the table of how a stream ends.

#include "common/exit_codes.h"

namespace signvote::wire {

inline constexpr ExitCode kRunEnds[] = {ExitCode::kDiverged, ExitCode::kReplicaMismatch};

}  // namespace signvote::wire
