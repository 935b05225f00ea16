#pragma once
// What of a run's flags may not change while the run lasts: workers were told of it, or its state is of it.

#include "absl/status/status.h"
#include "server/run/run.h"
#include "signvote/v1/journal.pb.h"

namespace signvote::run {

// Names and values as flags have them; of --rule auto what it stands for.
void FillSettings(const RunOptions& options, v1::JournalHead* head);

// FAILED_PRECONDITION with exit code kBadInput: the first that differs, with both values.
absl::Status CheckSettings(const v1::JournalHead& head, const RunOptions& options);

}  // namespace signvote::run
