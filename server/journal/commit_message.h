#pragma once
// A commit as the journal's message, and back.
//
// Threads: pure functions.

#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "server/commit/commit_record.h"
#include "signvote/v1/journal.pb.h"

namespace signvote::journal {

// All but `after` and the payload's bytes.
void FillCommit(const CommitRecord& record, v1::JournalCommit* out);

// The record that a commit and its payload are. `payload`: a buffer of plan.TotalBytes(), its chunks
// where the plan says; null for a commit without. DATA_LOSS: contents that no commit has.
absl::StatusOr<std::shared_ptr<const CommitRecord>> CommitFrom(
    const v1::JournalCommit& message, Round round, const PayloadPlan& plan, size_t tensors,
    std::shared_ptr<const uint8_t> payload);

}  // namespace signvote::journal
