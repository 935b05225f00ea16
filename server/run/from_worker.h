#pragma once
// What workers say, as inputs of a run. Pure translation; messages.h has the other way.

#include "absl/status/statusor.h"
#include "server/run/inputs.h"
#include "signvote/v1/training.pb.h"

namespace signvote::run {

using StreamWhat = decltype(StreamInput::what);

// The input that a message is, but for ballots, which lie in BallotSlots. `joined`: its stream has said
// Join before. INVALID_ARGUMENT: it ends its stream, because Join is the first message and no later one,
// or because it is of no known kind.
absl::StatusOr<StreamWhat> InputFrom(v1::WorkerMessage message, bool joined);

}  // namespace signvote::run
