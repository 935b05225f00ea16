#pragma once
// One worker's own state, taken from a voter and given back to one.
//
// Threads: pure functions but for what they do to what they are given; the training's thread, between
//          two ballots.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "worker/checkpoint/state_format.h"
#include "worker/codec/replica_memory.h"
#include "worker/codec/tensor_pointers.h"
#include "worker/direction/worker_device.h"
#include "worker/session/types.h"
#include "worker/vote/voter.h"

namespace signvote {

// The worker whose state it is. Does not own.
struct StateOwner {
  const RunInfo* run = nullptr;
  ReplicaMemory* replica = nullptr;
  WorkerDevice* device = nullptr;
  Voter* voter = nullptr;
};

// What whoever drives the voter has kept for it, by tensor of the run's layout, in memory of the device;
// empty: it keeps none.
struct KeptByCaller {
  ConstTensorPointers previous;  // Voter::PreviousKept()
  ConstTensorPointers gradient;  // Voter::GradientKept()
};
// Takes the same back, by coordinate. An empty function: it cannot, and what needs it is left out.
struct GivenBack {
  std::function<absl::Status(std::span<const float>)> previous, gradient;
};

struct StateOrigin {
  std::string worker;
  Round round;  // of the replica
  Share share;
  uint64_t main_round = 0;
};

// A copy of all that the next ballot goes on from. RESOURCE_EXHAUSTED: there is no memory for it. What the
// device fails with is returned as it is.
absl::StatusOr<WorkerState> TakeWorkerState(const StateOwner& owner, const KeptByCaller& kept,
                                            const StateOrigin& origin);

// What became of a state that was there.
struct Resumed {
  enum class How : uint8_t {
    kExactly,  // the next ballot is the one that it would have been
    kAsItWas,  // of an earlier round, or of another course of the run: the direction goes on from it
    kForgotten,  // from before the first main round, where every trial begins anew: begun without
  };
  How how = How::kForgotten;
  Round round;              // of the state
  uint64_t age_rounds = 0;  // commits that the replica holds and the state has not seen
};

// "exactly", "as it was", "forgotten".
std::string_view Words(Resumed::How how);

// Into a voter that has voted on nothing yet, whose replica stands at `round`. FAILED_PRECONDITION: it is
// of another run, model or direction; the message says of which, and nothing has changed.
absl::StatusOr<Resumed> GiveWorkerState(const WorkerState& state, const StateOwner& owner,
                                        Round round, const GivenBack& given_back);

}  // namespace signvote
