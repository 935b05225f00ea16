#pragma once
// A session's link to its server: the thread that receives, checks and hands whole commits over to
// the caller, and the lock under which both sides meet. It joins what the parts beside it do:
//
//   Connection        dials, and dials again
//   Follower          decides what each message means and what is said to it
//   VerdictAssembler  puts verdicts together
//   BallotSender      keeps the ballot and sends it under the vote that is open
//   WireMeter         counts bytes
//
// Ownership: owns verdict slots; a CommitEvent's slot belongs to the caller until ReleaseSlot().
// Threads:   the link's own thread, and any other for the public methods. Nothing is polled: whoever
//            changes what another waits for says so.
// Failure:   a lost connection is mended; what cannot be mended ends the link, and Next() returns
//            why.

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <variant>

#include <grpcpp/security/credentials.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "proto/wire/wire.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/ballot_sender.h"
#include "worker/session/connection.h"
#include "worker/session/follower.h"
#include "worker/session/retry_policy.h"
#include "worker/session/session.h"
#include "worker/session/state_transfer.h"
#include "worker/session/stream.h"
#include "worker/session/verdict_assembler.h"
#include "worker/session/verdict_store.h"
#include "worker/session/wire_meter.h"

namespace signvote {

// The server has let this worker in for the first time.
struct JoinedEvent {
  RunInfo run;
};
struct OpenEvent {
  RoundTicket ticket;
  Time at;
};
// The server wants the state fetched or uploaded, over this connection; the caller answers with
// ReplicaStandsAt() or AbandonConnection().
struct StateEvent {
  TransferAction::Kind kind = TransferAction::Kind::kFetch;
  uint64_t connection = 0;
  std::string ticket;
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

class Link : private ConnectionUser {
 public:
  // `log` must outlive the link.
  Link(const SessionOptions& options, Clock* clock, const SessionLog* log,
       std::shared_ptr<grpc::ChannelCredentials> credentials);
  ~Link() override { Stop(); }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Starts the thread. Call once.
  void Start(FollowerOptions who, uint64_t jitter_seed) ABSL_LOCKS_EXCLUDED(mu_);
  // Cuts the connection and ends the thread.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

  // ---- events
  // The next one, waiting for it until `deadline`. The status that ended the link, once all events
  // before it were taken; OUT_OF_RANGE after a goodbye: none follows; CANCELLED: interrupted;
  // DEADLINE_EXCEEDED otherwise, naming `what` and the server's last notice.
  absl::StatusOr<LinkEvent> Next(Time deadline, const std::string& what) ABSL_LOCKS_EXCLUDED(mu_);
  // Without waiting.
  std::optional<LinkEvent> TryNext() ABSL_LOCKS_EXCLUDED(mu_);
  // A wish of this side or the operator: an event for the caller, and the end of a state transfer
  // that runs.
  void RequestDrain(std::string reason) ABSL_LOCKS_EXCLUDED(mu_);
  bool drain_requested() const ABSL_LOCKS_EXCLUDED(mu_);
  void ReleaseSlot(VerdictStore::Slot* slot) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status status() const ABSL_LOCKS_EXCLUDED(mu_);  // OK while the link lives
  bool connected() const ABSL_LOCKS_EXCLUDED(mu_);       // and welcomed

  // ---- state transfer (the caller's thread)
  struct Transfer {
    std::shared_ptr<grpc::Channel> channel;
    std::shared_ptr<TransferStop> stop;  // stopped by a drain, and by the end of the connection
  };
  // nullopt: this connection is over, or a drain was requested.
  std::optional<Transfer> BeginTransfer(uint64_t connection) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits, unless this connection ends or a drain is requested before. CANCELLED: interrupted.
  absl::Status PauseBeforeTransfer(uint64_t connection, Duration pause) ABSL_LOCKS_EXCLUDED(mu_);
  // The transfer over this connection succeeded and all events were taken: tells the server, and
  // follows from this round on.
  void ReplicaStandsAt(uint64_t connection, Round round) ABSL_LOCKS_EXCLUDED(mu_);
  // It failed: a new session, and with it a new ticket, is tried.
  void AbandonConnection(uint64_t connection, absl::Status why) ABSL_LOCKS_EXCLUDED(mu_);
  void CountTransfer(const wire::SocketBytes& moved, bool succeeded) ABSL_LOCKS_EXCLUDED(stats_mu_);

  // ---- the ballot, and what is said to the server
  BallotSender& ballot() { return ballot_; }
  absl::Status SendScalars(v1::Scalars scalars) ABSL_LOCKS_EXCLUDED(stats_mu_);
  // Dropped without a connection.
  void SendDigest(Round round, uint64_t digest) ABSL_LOCKS_EXCLUDED(mu_);
  // The live connection has said that the run is finished.
  bool finish_current() const ABSL_LOCKS_EXCLUDED(mu_);
  // Nothing follows after `last`: when the connection ends, the link ends. True: it ended within
  // `timeout`. kAwaitServer: a drain ends the wait.
  enum class Goodbye { kAwaitServer, kHalfClose };
  bool SayGoodbye(const std::optional<v1::WorkerMessage>& last, Goodbye goodbye, Duration timeout)
      ABSL_LOCKS_EXCLUDED(mu_);

  SessionStats Stats() ABSL_LOCKS_EXCLUDED(mu_, stats_mu_);
  void CountApplied(Duration took) ABSL_LOCKS_EXCLUDED(stats_mu_);

 private:
  // ConnectionUser.
  std::optional<grpc::ByteBuffer> OnDialed(const std::shared_ptr<Stream>& stream) override;
  Stream::Taken OnMessage(Stream* stream, const grpc::ByteBuffer& message) override;
  std::optional<ConnectionEnd> OnEnded(absl::Status status) override;
  void OnReconnect(const absl::Status& why) override;

  void Main(uint64_t jitter_seed);
  absl::StatusOr<Stream::Taken> Receive(Stream* stream, const grpc::ByteBuffer& buffer);
  absl::StatusOr<Stream::Taken> OnVerdictChunk(const wire::VoteView& view,
                                               const grpc::ByteBuffer& buffer);
  absl::Status Do(Stream* stream, FollowerAction action, const v1::ServerMessage& message);
  absl::Status TakeCommit(const v1::Commit& commit);
  absl::Status OnMismatch(Round round, const std::string& why);
  absl::Status Push(LinkEvent event) ABSL_LOCKS_EXCLUDED(mu_);
  bool PushLocked(LinkEvent event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::shared_ptr<Stream> StreamOf(uint64_t connection) const ABSL_LOCKS_EXCLUDED(mu_);
  // Waits for `predicate` under mu_. CANCELLED: interrupted. DEADLINE_EXCEEDED.
  template <typename Predicate>
  absl::Status Await(Time deadline, const Predicate& predicate) ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after construction.
  const SessionOptions options_;
  Clock* const clock_;
  const SessionLog* const log_;

  // Own synchronisation.
  Connection connection_;
  BallotSender ballot_;
  WireMeter meter_;

  // Of the link's thread; the store's place is constant from the first JoinedEvent on.
  std::unique_ptr<VerdictStore> verdicts_;
  std::unique_ptr<VerdictAssembler> assembler_;
  RetryPolicy* retry_ = nullptr;  // lives in Main()
  absl::Status receive_error_;    // why this side ended the connection; OK: it did not
  Time started_;

  std::thread thread_;  // of whoever starts and stops the link

  mutable Mutex mu_;
  CondVar changed_;
  std::optional<Follower> follower_ ABSL_GUARDED_BY(mu_);  // set by Start()
  std::shared_ptr<Stream> stream_ ABSL_GUARDED_BY(mu_);
  uint64_t connection_number_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<LinkEvent> events_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<TransferStop> transfer_ ABSL_GUARDED_BY(mu_);  // the one that runs, or ran last
  std::string notice_ ABSL_GUARDED_BY(mu_);
  bool drain_requested_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status fatal_ ABSL_GUARDED_BY(mu_);

  mutable Mutex stats_mu_;
  SessionStats stats_ ABSL_GUARDED_BY(stats_mu_);  // but for bytes and `connected`
};

}  // namespace signvote
