#pragma once
// A session's connection and the thread that owns it: it dials, joins, receives, checks, hands
// whole commits over to the caller, answers pings, resends the ballot, and dials again when the
// connection is lost.
//
// Ownership: owns verdict slots; a CommitEvent's slot belongs to the caller until ReleaseSlot().
// Threads:   the link's own thread, and any other for the public methods, unless they say
//            otherwise.
// Failure:   a lost connection is mended; what cannot be mended ends the link, and Next() returns
//            why.

#include <atomic>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include <grpcpp/security/credentials.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "proto/wire/socket_bytes.h"
#include "proto/wire/wire.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/backoff.h"
#include "worker/session/kept_ballot.h"
#include "worker/session/session.h"
#include "worker/session/stream.h"
#include "worker/session/verdict_store.h"

namespace signvote {

// A commit whose verdict is here, whole and with the commit's hash. They come in order of round,
// without gaps, from the round that the caller's replica was last said to stand at.
struct CommitEvent {
  Round round;
  float stepsize = 0;
  double loss = 0;
  uint32_t voters = 0;
  bool digest_due = false;
  VerdictStore::Slot* slot = nullptr;
  RoundTimes times;
};
struct OpenEvent {
  RoundTicket ticket;
  Time at;
};
// The server wants the state fetched or uploaded, over this connection; the caller answers with
// ReplicaStandsAt().
struct StateEvent {
  enum class Kind { kFetch, kUpload } kind = Kind::kFetch;
  uint64_t connection = 0;
  std::string ticket;
};
struct FinishEvent {
  Round rounds;
};
struct DrainEvent {
  std::string reason;
};
using LinkEvent = std::variant<CommitEvent, OpenEvent, StateEvent, FinishEvent, DrainEvent>;

class Link {
 public:
  Link(const SessionOptions& options, Clock* clock, std::string name, std::string token,
       std::shared_ptr<grpc::ChannelCredentials> credentials, uint64_t jitter_seed);
  ~Link() { Stop(); }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Starts the thread. `layout` must outlive the link. Call once.
  void Start(const Layout* layout);
  // Cuts the connection and ends the thread.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

  // The next event, waiting for it until `deadline`. The status that ended the link, once all
  // events before it were taken; CANCELLED after a goodbye; DEADLINE_EXCEEDED otherwise, naming
  // `what` and the server's last notice.
  absl::StatusOr<LinkEvent> Next(Time deadline, const std::string& what) ABSL_LOCKS_EXCLUDED(mu_);
  // Without waiting.
  std::optional<LinkEvent> TryNext() ABSL_LOCKS_EXCLUDED(mu_);
  // An event of this side's own. False when too many wait.
  bool Push(LinkEvent event) ABSL_LOCKS_EXCLUDED(mu_);
  void ReleaseSlot(VerdictStore::Slot* slot);
  absl::Status status() const ABSL_LOCKS_EXCLUDED(mu_);  // OK while the link lives
  // What the server said. REQUIRES: an event was taken.
  const RunInfo& run() const { return run_; }

  // ---- state transfer (the caller's thread)
  // A channel of its own for a transfer; nullptr when this connection is over.
  std::shared_ptr<grpc::Channel> DialForTransfer(uint64_t connection) ABSL_LOCKS_EXCLUDED(mu_);
  // The transfer over this connection succeeded: tells the server, and follows from this round on.
  void ReplicaStandsAt(uint64_t connection, Round round) ABSL_LOCKS_EXCLUDED(mu_);
  // It failed: a new session, and with it a new ticket, is tried.
  void AbandonConnection(uint64_t connection, absl::Status why) ABSL_LOCKS_EXCLUDED(mu_);
  void CountTransfer(const wire::SocketBytes& moved, bool succeeded) ABSL_LOCKS_EXCLUDED(stats_mu_);

  // ---- the ballot
  void OpenBallot(Round round, Time opened) ABSL_LOCKS_EXCLUDED(mu_);
  // Any thread, also several at a time. `bits` stay unchanged until CloseBallot() returned.
  absl::Status SendChunk(ChunkIndex k, const uint8_t* bits) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status SendScalars(v1::Scalars scalars) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status SendAbstain(v1::Abstain::Reason reason) ABSL_LOCKS_EXCLUDED(mu_);
  // The caller may change or free the bits when this has returned. `opened`, `first_chunk` and
  // `ballot_written`.
  RoundTimes CloseBallot() ABSL_LOCKS_EXCLUDED(mu_);

  // ---- towards the server
  // Dropped without a connection.
  void Send(const v1::WorkerMessage& message) ABSL_LOCKS_EXCLUDED(mu_);
  // The live connection has said that the run is finished.
  bool finish_current() const ABSL_LOCKS_EXCLUDED(mu_);
  // Nothing follows after `last`: when the connection ends, the link ends. True: it ended within
  // `timeout`.
  enum class Goodbye { kAwaitServer, kHalfClose };
  bool SayGoodbye(const std::optional<v1::WorkerMessage>& last, Goodbye goodbye, Duration timeout)
      ABSL_LOCKS_EXCLUDED(mu_);

  SessionStats Stats() const ABSL_LOCKS_EXCLUDED(mu_, stats_mu_);
  void CountApplied(Duration took) ABSL_LOCKS_EXCLUDED(stats_mu_);

 private:
  struct OpenAttempt {
    Round round;
    Attempt attempt;
  };

  void Main();
  // Decides about the ended connection: OK: dial again.
  absl::Status AfterConnection(absl::Status status) ABSL_LOCKS_EXCLUDED(mu_);
  v1::WorkerMessage JoinMessage() ABSL_LOCKS_EXCLUDED(mu_);
  std::shared_ptr<Stream> stream() const ABSL_LOCKS_EXCLUDED(mu_);

  void OnMessage(grpc::ByteBuffer& buffer);
  absl::Status Receive(const grpc::ByteBuffer& buffer);
  absl::Status OnWelcome(const v1::Welcome& welcome);
  absl::Status OnVerdictChunk(const wire::VoteView& view, const grpc::ByteBuffer& buffer);
  absl::Status OnCommit(const v1::Commit& commit);
  absl::Status OnRoundOpen(const v1::RoundOpen& open);
  absl::Status OnResync(const v1::Resync& resync);
  absl::Status OnMismatch(Round round, const std::string& why);
  // The slot in which the round's verdict is put together; nullptr when the link stops.
  VerdictStore::Slot* SlotFor(Round round);
  // Takes the round's slot out of those being put together and frees those before it.
  VerdictStore::Slot* TakeSlot(Round round);
  void DropAssembled();

  // The attempt that the kept ballot is to be sent under; nullopt: it waits.
  std::optional<VoteId> VoteLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReadCounterLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(stats_mu_);
  void CloseCounter() ABSL_LOCKS_EXCLUDED(stats_mu_);

  // Constant after construction.
  const SessionOptions options_;
  Clock* const clock_;
  const std::string name_;
  const std::string token_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;

  // Set by Start().
  const Layout* layout_ = nullptr;
  Time started_;

  // Set by the link's thread with the first welcome, before the first event that needs them;
  // constant then.
  RunInfo run_;
  std::unique_ptr<VerdictStore> verdicts_;

  // Of the link's thread.
  Backoff backoff_;
  std::vector<VerdictStore::Slot*> assembled_;
  bool welcomed_ = false;  // on this connection
  bool ever_welcomed_ = false;
  std::string transfer_ticket_;  // of this connection's welcome
  absl::Status receive_error_;   // why this side ended the connection; OK: it did not
  Time lost_since_;
  int hang_ups_in_a_row_ = 0;
  int mismatches_in_a_row_ = 0;

  mutable Mutex mu_;
  CondVar changed_;  // an event, a freed slot, or an end
  std::thread thread_;
  std::shared_ptr<Stream> stream_ ABSL_GUARDED_BY(mu_);
  uint64_t connection_ ABSL_GUARDED_BY(mu_) = 0;  // number of the connection
  Epoch epoch_ ABSL_GUARDED_BY(mu_);
  std::optional<Round> received_
      ABSL_GUARDED_BY(mu_);  // next commit expected; nullopt: no replica to follow with
  Epoch last_commit_epoch_ ABSL_GUARDED_BY(mu_);
  std::optional<OpenAttempt> open_ ABSL_GUARDED_BY(mu_);  // as this connection was told
  KeptBallot ballot_ ABSL_GUARDED_BY(mu_);
  std::deque<LinkEvent> events_ ABSL_GUARDED_BY(mu_);
  absl::Status fatal_ ABSL_GUARDED_BY(mu_);
  std::string notice_ ABSL_GUARDED_BY(mu_);
  bool run_known_ ABSL_GUARDED_BY(mu_) = false;
  bool goodbye_ ABSL_GUARDED_BY(mu_) = false;
  bool finish_seen_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t finish_connection_ ABSL_GUARDED_BY(mu_) = 0;  // on which it was seen last
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  Round finish_round_ ABSL_GUARDED_BY(mu_);  // … and the rounds it named
  uint64_t digest_connection_ ABSL_GUARDED_BY(mu_) =
      0;                                     // connection of the last digest that was sent
  Round digest_round_ ABSL_GUARDED_BY(mu_);  // … and its round
  bool ended_ ABSL_GUARDED_BY(mu_) = false;

  mutable Mutex stats_mu_;
  mutable SessionStats stats_ ABSL_GUARDED_BY(stats_mu_);
  mutable std::optional<wire::SocketByteCounter> counter_ ABSL_GUARDED_BY(stats_mu_);
  mutable wire::SocketBytes counted_ ABSL_GUARDED_BY(stats_mu_);  // last reading of counter_
  bool joined_rounds_ ABSL_GUARDED_BY(stats_mu_) =
      false;  // this connection's bytes are the rounds' by now
};

}  // namespace signvote
