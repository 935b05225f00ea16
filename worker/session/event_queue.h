#pragma once
// What a link's thread has for the caller, in order, and how the caller waits for it.
//
// Ownership: events own nothing but a commit's slot, which belongs to whoever takes the event.
// Threads:   thread-safe. The link's thread pushes, the caller's thread takes.
// Failure:   the queue is bounded, because a server fills it; whoever pushes learns that it is full.
// Invariant: a wish to drain always finds room, once.

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "worker/session/follower.h"
#include "worker/session/types.h"
#include "worker/session/verdict_assembler.h"
#include "worker/session/waits.h"

namespace signvote {

// The server has let this worker in for the first time.
struct JoinedEvent {
  RunInfo run;
};
struct OpenEvent {
  RoundTicket ticket;
  Time at;
};
// The server wants the state fetched or uploaded, over this connection.
struct StateEvent {
  TransferAction::Kind kind = TransferAction::Kind::kFetch;
  uint64_t connection = 0;
  std::string ticket;
  bool differs = false;  // the server found that the replica is not the run's
};
struct FinishEvent {
  Round rounds;
};
struct DrainEvent {
  std::string reason;
};
// CommitEvents come in order of round, without gaps, from the round that the caller's replica was
// last said to stand at; while a state transfer runs, with gaps.
using LinkEvent =
    std::variant<JoinedEvent, CommitEvent, OpenEvent, StateEvent, FinishEvent, DrainEvent>;

class EventQueue {
 public:
  static constexpr size_t kEventsMax = 4096;

  // `server` is named where a wait came to nothing.
  EventQueue(std::string server, Waits waits)
      : server_(std::move(server)), waits_(std::move(waits)) {}

  // ---- the link's side
  // RESOURCE_EXHAUSTED: no room; nothing was changed.
  absl::Status Push(LinkEvent event) ABSL_LOCKS_EXCLUDED(mu_);
  // For the words of a wait: whether there is a connection, and what the server said last. Empty:
  // it has no reason to keep anybody waiting.
  void SetConnected(bool connected) ABSL_LOCKS_EXCLUDED(mu_);
  void SetNotice(std::string text) ABSL_LOCKS_EXCLUDED(mu_);
  // Nothing follows. `why` is what Next() returns once all is taken; OK: after a goodbye.
  void End(absl::Status why) ABSL_LOCKS_EXCLUDED(mu_);

  // ---- the caller's side
  // The next event, waiting for it until `deadline`. The status that ended the link, once all events
  // before it were taken; OUT_OF_RANGE after a goodbye: none follows; CANCELLED: interrupted;
  // DEADLINE_EXCEEDED otherwise, naming `what` and the server's last notice.
  absl::StatusOr<LinkEvent> Next(Time deadline, const std::string& what) ABSL_LOCKS_EXCLUDED(mu_);
  // Without waiting.
  std::optional<LinkEvent> TryNext() ABSL_LOCKS_EXCLUDED(mu_);
  // The round after the last commit that waits here, of those that follow `round` without a gap.
  Round AtHandFrom(Round round) const ABSL_LOCKS_EXCLUDED(mu_);
  // Waits for the link's end, or a wish to drain where that is asked for. True: the link has ended.
  enum class Or { kNothing, kDrain };
  bool AwaitEnd(Time deadline, Or or_what) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status status() const ABSL_LOCKS_EXCLUDED(mu_);  // OK while the link lives

  // ---- any thread
  // An event for the caller. Only the first counts.
  void RequestDrain(std::string reason) ABSL_LOCKS_EXCLUDED(mu_);
  bool drain_requested() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  std::optional<LinkEvent> TakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string server_;
  const Waits waits_;

  mutable Mutex mu_;
  CondVar changed_;
  std::deque<LinkEvent> events_ ABSL_GUARDED_BY(mu_);
  std::string notice_ ABSL_GUARDED_BY(mu_);
  bool connected_ ABSL_GUARDED_BY(mu_) = false;
  bool drain_requested_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status fatal_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote
