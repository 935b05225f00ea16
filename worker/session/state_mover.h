#pragma once
// The run's state on its way to or from the caller's memory: fetches it, while commits arrive, or
// uploads the worker's own initial parameters; gives way to interruptions and drains; tries again
// with pauses, and says when that is of no use.
//
// Ownership: refers to replica, memory and neighbours, which must outlive it.
// Threads:   the caller's thread, which it blocks; each wait is ended by the line.
// Failure:   a transfer that fails costs its connection, whose successor asks for another. Returned
//            are: FAILED_PRECONDITION, the server wants parameters that are trained by now;
//            UNAVAILABLE or the last failure, once it is hopeless; CANCELLED, interrupted.

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "proto/wire/socket_bytes.h"
#include "worker/codec/replica_memory.h"
#include "worker/session/catch_up.h"
#include "worker/session/event_queue.h"
#include "worker/session/replica.h"
#include "worker/session/session.h"
#include "worker/session/state_transfer.h"
#include "worker/session/transfer_retries.h"

namespace signvote {

// A session's connection as a state transfer sees it. The link implements it.
class TransferLine {
 public:
  virtual ~TransferLine() = default;
  // TransferGate's.
  virtual absl::Status PauseBeforeTransfer(uint64_t connection, Duration pause) = 0;
  virtual std::shared_ptr<TransferStop> BeginTransfer(uint64_t connection) = 0;
  // state_transfer.h, over a TCP connection of its own. CANCELLED: by `stop`, or interrupted.
  virtual absl::Status Fetch(const StateEvent& state, TransferStop* stop, bool x0,
                             ReplicaMemory* memory,
                             const std::function<absl::Status(const FetchedPart&)>& on_part,
                             wire::SocketBytes* moved) = 0;
  virtual absl::Status Upload(const StateEvent& state, TransferStop* stop, ReplicaMemory* memory,
                              wire::SocketBytes* moved) = 0;
  virtual bool Leaving() const = 0;  // a drain was asked for
  // What became of it. A transfer that failed costs the connection.
  virtual void TransferSucceeded(uint64_t connection, Round stands_at) = 0;
  virtual void TransferFailed(uint64_t connection, absl::Status why) = 0;
};

class StateMover {
 public:
  struct Options {
    std::string server;  // for words
    Duration first_pause{};
    uint64_t verdict_bytes = 0;  // of one round, for advice
  };
  // The caller's side of the session.
  struct Session {
    // A transfer begins: the replica is not the run's until it is done.
    std::function<void()> begins;
    // Takes events that came meanwhile; commits among them go to AddCommit(). ABORTED: another
    // transfer is wanted.
    std::function<absl::Status()> take_arrived;
    // As CatchUp wants them.
    CatchUp::Apply apply;
    CatchUp::LetGo let_go;
  };

  StateMover(TransferLine* line, const Clock* clock, const SessionLog* log, Options options,
             Replica* replica, ReplicaMemory* memory, Session session)
      : line_(line),
        clock_(clock),
        log_(log),
        options_(std::move(options)),
        replica_(replica),
        memory_(memory),
        session_(std::move(session)),
        retries_(options_.first_pause) {}

  // kPutOff: interrupted before it began; the same event is to be given again.
  enum class Moved { kDone, kPutOff };
  // Does what the event asks for. kDone also when its connection is over, or this worker leaves.
  absl::StatusOr<Moved> Move(const StateEvent& state);

  // A state is being fetched: commits go to AddCommit().
  bool fetching() const { return catch_up_ != nullptr; }
  // REQUIRES: fetching().
  void AddCommit(CommitEvent commit) { catch_up_->Add(std::move(commit)); }

  // The memory no longer holds initial parameters: this worker's own, or the run's that it fetched.
  void Touched() { untouched_ = false; }
  void RoundOpened() { retries_.RoundOpened(); }

 private:
  absl::Status BeforeAnother(const StateEvent& state);
  absl::Status Fetch(const StateEvent& state, TransferStop* stop);
  absl::Status AddPart(const FetchedPart& part);

  // Constant after construction.
  TransferLine* const line_;
  const Clock* const clock_;
  const SessionLog* const log_;
  const Options options_;
  Replica* const replica_;
  ReplicaMemory* const memory_;
  const Session session_;

  TransferRetries retries_;
  bool untouched_ = true;              // the memory holds initial parameters
  std::unique_ptr<CatchUp> catch_up_;  // while a state is fetched
};

}  // namespace signvote
