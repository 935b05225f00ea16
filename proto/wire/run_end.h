#pragma once
// How a run's end is told to its workers beside the status of their sessions: the exit code with which
// the server ends because of it (kRunEnds of common/exit_codes.h), so that they end with the same. It is
// trailing metadata; the status says only that nothing is left to come back for. docs/wire_format.md.
//
// Threads: pure functions.

#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>

#include "absl/status/status.h"

namespace signvote::wire {

inline constexpr char kExitCodeKey[] = "signvote-exit-code";

// Sends the exit code of `status` if it is one of kRunEnds. REQUIRES: the call is not finished yet.
void SendExitCode(const absl::Status& status, grpc::CallbackServerContext* context);

// `status`, with the exit code that came with it; as it is when none of kRunEnds came.
// REQUIRES: the call has ended.
absl::Status WithReceivedExitCode(absl::Status status, const grpc::ClientContext& context);

}  // namespace signvote::wire
