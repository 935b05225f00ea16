#pragma once
// A run as a worker's file carries it (common/saved_run.h): what the server says of it to workers that
// save their replica, and the run that is taken up from such a file.
//
// Threads: pure functions.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/saved_run.h"
#include "server/run/run_state.h"
#include "signvote/v1/journal.pb.h"

namespace signvote::run {

// Where the run stands (SavedRun::after; the head is a JournalHead's bytes), without the times of
// arrivals: whoever goes on from it measures them anew. REQUIRES: the optimizer keeps nothing for each
// coordinate.
std::string StateForSave(RunState state);

// The head of a journal that stands where the file does. DATA_LOSS: contents that no run has, or of
// another run or round than the file itself says.
absl::StatusOr<v1::JournalHead> HeadOf(const SavedRun& saved);

// The state of epoch `epoch`, or of the one behind that of the file if that is later: it must be above
// those of all servers that have taken the run up, of which a file need not know. DATA_LOSS as of
// TakeUp(). `x0` null: not kept.
absl::StatusOr<RunState> TakeUpSave(v1::JournalHead head, Epoch epoch,
                                    std::shared_ptr<std::vector<float>> x,
                                    std::shared_ptr<std::vector<float>> x0);

}  // namespace signvote::run
