#pragma once
// What a commit does to a stretch of parameters: of the master replica, and of a snapshot that a
// journal's commits are played on.

#include <cstdint>

#include "common/layout.h"
#include "server/commit/commit_record.h"

namespace signvote {

// Moves coordinates [from, to) as `record` says. x and x0 point to coordinate `from`; x0 may be null
// where the commit does not need it: no rewind, and ρ = 1. Bit-identical however a replica is cut into
// stretches. Threads: from several at a time, on different stretches.
void MoveParameters(const Layout& layout, const CommitRecord& record, uint64_t from, uint64_t to,
                    const float* x0, float* x);

}  // namespace signvote
