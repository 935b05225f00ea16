#pragma once
// What reaches a run from outside, one value after the other. Plain values.

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "common/clock.h"
#include "common/ids.h"
#include "common/vote_terms.h"
#include "server/commit/commit_consumer.h"
#include "server/run/evaluation.h"
#include "server/run/initial.h"
#include "server/run/peer.h"
#include "server/run/run_books.h"
#include "server/stepsize/types.h"
#include "server/vote/tally_sink.h"
#include "signvote/v1/training.pb.h"

namespace signvote::run {

// ---- what a stream brings -----------------------------------------------------------------------

// It began. The first input of its number.
struct StreamOpened {
  std::shared_ptr<Peer> peer;
};
struct JoinIn {
  std::shared_ptr<const v1::Join> join;
};
// The worker's replica holds all commits before `round`, or will when it has read what was sent.
struct ReadyIn {
  Round round;
};
// A ballot chunk was looked at. Where it lies, if it was needed, the stream's BallotSlots know.
struct BallotIn {
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
};
struct ScalarsIn {
  Round round;
  Attempt attempt;
  WorkerScalars scalars;
  VoterTimes times;
  std::optional<Evaluation::Measured> held_out;  // since its last ones
};
struct AbstainIn {
  Round round;
  Attempt attempt;
  AbstainReason reason = AbstainReason::kOther;
};
struct DigestIn {
  Round round;
  uint64_t digest = 0;
};
struct PongIn {
  uint64_t nonce = 0;
};
struct LeaveIn {
  std::string reason;  // fit for people
};
// The queue has room again, as asked for by NotifyWhenBelow().
struct RoomIn {};
// No further message will come: it broke, the worker closed its side, or it is being closed.
struct GoneIn {
  std::string reason;
  bool ended_by_us = false;  // for what the worker sent
};
// The last input of its number.
struct StreamDone {};

// ---- calls that move a stream's state -----------------------------------------------------------

enum class CallKind : uint8_t { kFetch, kUpload };
// Asked for with the stream's ticket; answered by StateCall::Start() or End().
struct CallAsked {
  CallKind kind = CallKind::kFetch;
  std::shared_ptr<StateCall> call;
};
// Parameter bytes that the call has moved so far; now and then. An upload is whole when all are
// there.
struct CallProgress {
  std::shared_ptr<StateCall> call;
  uint64_t bytes = 0;
  float max_abs = 0;  // of an upload: the largest |x_i| so far
};
// It is over, however it went: another one may follow.
struct CallEnded {
  std::shared_ptr<StateCall> call;
};
// Everything that a call which is over has moved, both ways. May come behind the stream's last input.
struct CallMoved {
  uint64_t up = 0, down = 0;
};

// Held by an input until it was handled: by it a stream's owner knows how many still wait.
class Receipt {
 public:
  Receipt() = default;
  // `waiting` is counted down when the receipt goes.
  explicit Receipt(std::shared_ptr<std::atomic<uint32_t>> waiting) : waiting_(std::move(waiting)) {}
  Receipt(Receipt&& other) noexcept = default;
  Receipt& operator=(Receipt&& other) noexcept {
    std::swap(waiting_, other.waiting_);
    return *this;
  }
  ~Receipt() {
    if (waiting_ != nullptr) waiting_->fetch_sub(1, std::memory_order_relaxed);  // a number only
  }

 private:
  std::shared_ptr<std::atomic<uint32_t>> waiting_;
};

// Of the stream with this number. One whose number is not open any more is dropped.
struct StreamInput {
  PeerId peer;
  std::variant<StreamOpened, JoinIn, ReadyIn, BallotIn, ScalarsIn, AbstainIn, DigestIn, PongIn,
               LeaveIn, RoomIn, GoneIn, StreamDone, CallAsked, CallProgress, CallEnded, CallMoved>
      what;
  Receipt receipt;
};

// ---- what the run's own helpers answer ----------------------------------------------------------

// Commits up to and including `round` are released by the durability policy.
struct DurableIn {
  Round round;
};
// The journal cannot be written any more: no commit will be released.
struct JournalFailed {
  absl::Status status;
};
// Time passed: not before NextTick().
struct TickIn {};

using Input =
    std::variant<StreamInput, ChunkTallied, DurableIn, JournalFailed, Applied, InitLoaded, TickIn>;

}  // namespace signvote::run
