#pragma once
// A session that has every ballot on the disk before any of it leaves: so that a run can be counted
// again, by others, from what was voted. docs/lab.md, "Recorded ballots".

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/session/session.h"

namespace signvote {

// Writes the ballots of `session` to the first file WORKER.N.ballots, N from 1 on, that is not in
// `folder` yet, which is made where it is missing.
//
// Ownership:  owns the session.
// Threads:    as the session's, but that SendChunk() is one thread's too.
// Durability: a ballot is synced before its first chunk goes; a last line that is not whole is of a
//             ballot of which nothing went.
// Failure:    SendScalars() fails with what writing failed with, and nothing is sent.
absl::StatusOr<std::unique_ptr<Session>> RecordBallots(std::unique_ptr<Session> session,
                                                       const std::string& folder,
                                                       const std::string& worker);

}  // namespace signvote
