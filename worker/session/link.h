#pragma once
// A session's link to its server: the thread on which messages are received and acted upon. It joins
// the parts beside it and decides nothing of its own:
//
//   Connection      dials, and dials again
//   Conversation    what is said to the server, and what its messages mean
//   CommitReceiver  puts verdicts and commits together
//   EventQueue      what the caller is told, and waits for
//   BallotSender    keeps the ballot and sends it under the vote that is open
//   TransferGate    ends state transfers with their connection
//   WireMeter       counts bytes, SessionCounters the rest
//
// Ownership: a CommitEvent's slot belongs to the caller until ReleaseSlot().
// Threads:   the link's own thread, and any other for the public methods. Nothing is polled: whoever
//            changes what another waits for says so. The parts keep their own locks.
// Failure:   a lost connection is mended; what cannot be mended ends the link, and the queue of events
//            with it.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include <grpcpp/security/credentials.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/ballot_sender.h"
#include "worker/session/commit_receiver.h"
#include "worker/session/connection.h"
#include "worker/session/conversation.h"
#include "worker/session/event_queue.h"
#include "worker/session/follower.h"
#include "worker/session/retry_policy.h"
#include "worker/session/session.h"
#include "worker/session/session_counters.h"
#include "worker/session/state_mover.h"
#include "worker/session/stream.h"
#include "worker/session/transfer_gate.h"
#include "worker/session/wire_meter.h"

namespace signvote {

class Link : private ConnectionUser, public TransferLine {
 public:
  // `log` must outlive the link. `seed`: of waits, and of the marks of its connections.
  Link(const SessionOptions& options, Clock* clock, const SessionLog* log,
       std::shared_ptr<grpc::ChannelCredentials> credentials, uint64_t seed);
  ~Link() override { Stop(); }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Starts the thread. Call once.
  void Start(const FollowerOptions& who);
  // Cuts the connection and ends the thread.
  void Stop();

  EventQueue& events() { return events_; }
  BallotSender& ballot() { return ballot_; }
  Conversation& conversation() { return conversation_; }
  SessionCounters& counters() { return counters_; }
  SessionStats Stats();

  // A wish of this side or the operator: an event for the caller, and the end of a state transfer
  // that runs.
  void RequestDrain(std::string reason);
  void ReleaseSlot(VerdictStore::Slot* slot);
  // Says `last` and nothing after it: when the connection ends, the link ends. True: it ended within
  // `timeout`. kAwaitServer: a drain ends the wait.
  bool PartFrom(const std::optional<v1::WorkerMessage>& last, Conversation::Goodbye goodbye,
                Duration timeout);

  // ---- TransferLine
  absl::Status PauseBeforeTransfer(uint64_t connection, Duration pause) override;
  std::shared_ptr<TransferStop> BeginTransfer(uint64_t connection) override;
  absl::Status Fetch(const StateEvent& state, TransferStop* stop, bool x0, ReplicaMemory* memory,
                     const std::function<absl::Status(const FetchedPart&)>& on_part,
                     wire::SocketBytes* moved) override;
  absl::Status Upload(const StateEvent& state, TransferStop* stop, ReplicaMemory* memory,
                      wire::SocketBytes* moved) override;
  bool Leaving() const override { return events_.drain_requested(); }
  void TransferSucceeded(uint64_t connection, Round stands_at) override;
  void TransferFailed(uint64_t connection, absl::Status why) override;

 private:
  // ConnectionUser.
  std::optional<grpc::ByteBuffer> OnDialed(const std::shared_ptr<Stream>& stream) override;
  Stream::Taken OnMessage(Stream* stream, const grpc::ByteBuffer& message) override;
  std::optional<ConnectionEnd> OnEnded(absl::Status status) override;
  void OnReconnect(const absl::Status& why) override;

  void Main(const std::string& worker);
  absl::StatusOr<Stream::Taken> Receive(Stream* stream, const grpc::ByteBuffer& buffer);
  absl::Status Do(Stream* stream, FollowerAction action, const v1::ServerMessage& message);
  absl::Status Opened(OpenedAction opened);
  absl::Status Joined(Stream* stream, const JoinedAction& joined);

  // Constant after construction.
  const SessionOptions options_;
  Clock* const clock_;
  const SessionLog* const log_;
  const uint64_t seed_;

  // Own synchronisation.
  SessionCounters counters_;
  WireMeter meter_;
  Connection connection_;
  EventQueue events_;
  TransferGate gate_;
  Conversation conversation_;
  BallotSender ballot_;

  // Of the link's thread, but for the release of slots.
  CommitReceiver receiver_;
  RetryPolicy* retry_ = nullptr;  // lives in Main()
  absl::Status receive_error_;    // why this side ended the connection; OK: it did not
  Time started_;

  std::thread thread_;  // of whoever starts and stops the link
};

}  // namespace signvote
