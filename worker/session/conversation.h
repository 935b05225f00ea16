#pragma once
// What is said to the server and heard from it: the follower, which decides, and the stream of the
// live connection, under one lock, because what is said must be said over the connection that it was
// decided for.
//
// Ownership: refers to the queue of events, which must outlive it; shares streams with the link.
// Threads:   thread-safe. The link's thread calls what begins, hears and ends; the caller's thread
//            says what it has to say.
// Failure:   as the follower's: a status ends the connection.
// Invariant: a commit is in the queue of events exactly when the follower has taken it: the queue's
//            lock is taken inside this one.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/event_queue.h"
#include "worker/session/follower.h"
#include "worker/session/outgoing_stream.h"
#include "worker/session/retry_policy.h"
#include "worker/session/types.h"

namespace signvote {

class Conversation {
 public:
  explicit Conversation(EventQueue* events) : events_(events) {}
  Conversation(const Conversation&) = delete;
  Conversation& operator=(const Conversation&) = delete;

  // Who speaks. Once, before any connection; until then everything but what is known is out of order.
  void Introduce(FollowerOptions who) ABSL_LOCKS_EXCLUDED(mu_);

  // ---- the connection
  struct Opening {
    uint64_t connection = 0;  // its number, from 1
    v1::WorkerMessage join;   // the first message
  };
  // A new one, over this stream. nullopt: none is wanted any more.
  std::optional<Opening> Begins(std::shared_ptr<OutgoingStream> stream) ABSL_LOCKS_EXCLUDED(mu_);
  // It has ended with `status`; `by_us`: this side ended it because of what it was sent. nullopt:
  // nothing follows, because both have parted or this side has said goodbye; one that awaited the
  // server's still hears of a run that ended badly (kRunEnds of common/exit_codes.h).
  std::optional<ConnectionEnd> Ends(absl::Status status, bool by_us) ABSL_LOCKS_EXCLUDED(mu_);
  // No other one is wanted, and the live one ends at once.
  void Close() ABSL_LOCKS_EXCLUDED(mu_);

  // ---- what is heard
  // Every message but verdict chunks.
  absl::StatusOr<std::vector<FollowerAction>> Hear(const v1::ServerMessage& message, Time now)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Follower::Wants().
  absl::StatusOr<bool> Wants(const RunId& run_id, Round round) const ABSL_LOCKS_EXCLUDED(mu_);
  // The commit that was due is put together: it is the caller's next event. RESOURCE_EXHAUSTED: the
  // queue is full; nothing was changed.
  absl::Status Took(CommitEvent commit) ABSL_LOCKS_EXCLUDED(mu_);
  // It cannot be put together. Why this connection ends; OK: it need not.
  absl::Status Mismatched(Round round, const std::string& why) ABSL_LOCKS_EXCLUDED(mu_);

  // ---- what is said; all of it is dropped without a connection
  void Say(const v1::WorkerMessage& message) ABSL_LOCKS_EXCLUDED(mu_);
  void SayDigest(Round round, uint64_t digest) ABSL_LOCKS_EXCLUDED(mu_);
  // The state that was moved over this connection is there, and all events were taken: follows from
  // this round on. Dropped when that connection is over: the next one asks again.
  void SayReplicaStandsAt(uint64_t connection, Round round) ABSL_LOCKS_EXCLUDED(mu_);
  // Ends this connection with `why`, if it is the live one.
  void Abandon(uint64_t connection, absl::Status why) ABSL_LOCKS_EXCLUDED(mu_);
  // Nothing follows after `last`, which may be none. kHalfClose: the server is told so.
  enum class Goodbye { kAwaitServer, kHalfClose };
  void SayGoodbye(const std::optional<v1::WorkerMessage>& last, Goodbye goodbye)
      ABSL_LOCKS_EXCLUDED(mu_);

  // ---- what is known
  // The live connection's stream; nullptr: there is none.
  std::shared_ptr<OutgoingStream> stream() const ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t connection() const ABSL_LOCKS_EXCLUDED(mu_);  // number of the live one, or of the last
  RunInfo run() const ABSL_LOCKS_EXCLUDED(mu_);          // REQUIRES: a welcome was heard
  uint64_t incarnation() const ABSL_LOCKS_EXCLUDED(mu_);
  bool welcomed() const ABSL_LOCKS_EXCLUDED(mu_);        // on the live connection
  bool vote_open() const ABSL_LOCKS_EXCLUDED(mu_);       // on the live connection
  bool finish_seen() const ABSL_LOCKS_EXCLUDED(mu_);     // on any
  bool finish_current() const ABSL_LOCKS_EXCLUDED(mu_);  // on the live connection

 private:
  std::shared_ptr<OutgoingStream> StreamOf(uint64_t connection) const ABSL_LOCKS_EXCLUDED(mu_);

  EventQueue* const events_;

  mutable Mutex mu_;
  std::optional<Follower> follower_ ABSL_GUARDED_BY(mu_);  // set by Introduce()
  std::shared_ptr<OutgoingStream> stream_ ABSL_GUARDED_BY(mu_);
  uint64_t connection_ ABSL_GUARDED_BY(mu_) = 0;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  bool awaits_server_ ABSL_GUARDED_BY(mu_) = false;  // with its goodbye said
};

}  // namespace signvote
