#pragma once
// What receiving threads hand to the engine's thread.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "server/round/types.h"

namespace signvote::v1 {
class Join;
}

namespace signvote::rpc {

class ServerSession;

// A stream began.
struct OpenedIn {};
struct JoinIn {
  std::shared_ptr<v1::Join> join;
};
// The worker's replica holds all commits before `round`.
struct ReadyIn {
  Round round;
};
// A ballot chunk was looked at. Where it lies, if it was needed, the session's BallotSlots know.
struct BallotIn {
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
};
struct ScalarsMessageIn {
  Round round;
  Attempt attempt;
  WorkerScalars scalars;
  uint64_t compute_us = 0;  // round open to last chunk handed over, as the worker says
  uint64_t apply_us = 0;
};
struct AbstainMessageIn {
  Round round;
  Attempt attempt;
  AbstainReason reason = AbstainReason::kOther;
};
struct DigestMessageIn {
  Round round;
  uint64_t digest = 0;
};
struct PongIn {
  uint64_t nonce = 0;
};
struct LeaveIn {
  std::string reason;
};
// The session's queue has room again, as asked for by NotifyWhenBelow().
struct RoomIn {};
// No further message will come from this session: it broke, the worker closed its side, or it is
// being closed.
struct GoneIn {
  std::string reason;
  bool ended_by_us = false;  // for what the worker sent, or did not read
};
// gRPC has let go of the call.
struct DoneIn {};

struct Input {
  std::shared_ptr<ServerSession> session;  // nullptr: a call, which is about no session
  std::variant<OpenedIn, JoinIn, ReadyIn, BallotIn, ScalarsMessageIn, AbstainMessageIn,
               DigestMessageIn, PongIn, LeaveIn, RoomIn, GoneIn, DoneIn, std::function<void()>>
      what;
};

// Threads:    any number of producers, one consumer, which takes everything at once.
// Invariants: bounded by its producers: a session has at most ServerSession::Options::pending_max
//             messages in it and is closed beyond that; an admin or HTTP request and a state
//             transfer have one call each, the applier one per commit that it was given.
class Inbox {
 public:
  // False after Close(); `input` is then dropped.
  [[nodiscard]] bool Push(Input input) {
    {
      MutexLock lock(&mu_);
      if (closed_) return false;
      inputs_.push_back(std::move(input));
      if (inputs_.size() > 1) return true;  // the consumer has been woken for the first one
    }
    cv_.NotifyOne();
    return true;
  }
  // Waits up to `timeout` for an input and takes all of them. Empty on time-out.
  void TakeAll(Duration timeout, std::vector<Input>* out) {
    out->clear();
    MutexLock lock(&mu_);
    if (inputs_.empty() && timeout > Duration::zero())
      (void)cv_.WaitFor(&mu_, timeout);  // the caller looks again
    out->swap(inputs_);
  }
  void Close() {
    MutexLock lock(&mu_);
    closed_ = true;
  }

 private:
  Mutex mu_;
  CondVar cv_;
  std::vector<Input> inputs_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace signvote::rpc
