#pragma once
// One worker's stream, on the server's side: bytes in, inputs for the run out, and a queue of bytes
// back. Translation only: nothing is decided here but whether a message is well-formed.

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "proto/wire/socket_bytes.h"
#include "proto/wire/wire.h"
#include "server/rpc/stream_table.h"
#include "server/run/peer.h"
#include "server/run/run_thread.h"
#include "server/vote/ballot_slots.h"

namespace signvote::rpc {

//   kOpen ──Close──▶ kClosing ──queue and write done──▶ kFinished ──OnDone──▶ kDone
//
// Ownership:  keeps itself alive until gRPC is done with it.
// Threads:    gRPC's callbacks run on gRPC's threads and never block; Peer's methods are the run's;
//             the others: any thread.
// Failure:    a malformed message or a flood of messages closes the stream with a status that says
//             so; exactly one GoneIn and then one StreamDone reach the run, whatever happened.
class ServerSession final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                            public run::Peer,
                            public std::enable_shared_from_this<ServerSession> {
 public:
  // Messages handed to the run and not yet handled, before Admit().
  static constexpr uint32_t kWaitingMax = 256;

  // `context` is gRPC's and lives until OnDone. `ticket`: 16 bytes that nobody can guess.
  static std::shared_ptr<ServerSession> Start(grpc::CallbackServerContext* context,
                                              run::RunThread* run, StreamTable* table,
                                              std::string ticket);

  // ---- Peer ----
  run::PeerId id() const override { return id_; }
  const run::PeerIdentity& identity() const override { return identity_; }
  const std::string& ticket() const override { return ticket_; }
  void Send(const v1::ServerMessage& message) override;
  void SendVerdict(const run::VerdictHeader& header, std::span<const uint8_t> payload,
                   std::shared_ptr<const void> owner) override;
  void Admit(std::shared_ptr<BallotSlots> slots) override;
  size_t queued_bytes() const override;
  void NotifyWhenBelow(size_t bytes) override;
  void Close(absl::Status status) override;
  void Cancel() override;
  // From the kernel's counters of the connection. Two sessions on one connection cannot be told
  // apart there: the second one counts its messages instead.
  run::PeerBytes bytes() const override;

  // ---- for transfers ----
  bool closing() const;
  // A transfer on this session's own connection moved these.
  void AddTransferred(uint64_t received, uint64_t sent);

  // ---- gRPC's callbacks ----
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  enum class State { kOpen, kClosing, kFinished, kDone };
  // What to do outside the lock.
  struct Todo {
    const grpc::ByteBuffer* write = nullptr;
    grpc::WriteOptions write_options;
    bool finish = false;
    grpc::Status finish_status;
    bool gone = false;
    std::string gone_reason;
    bool gone_by_us = false;
    bool room = false;
  };

  ServerSession(grpc::CallbackServerContext* context, run::RunThread* run, StreamTable* table,
                std::string ticket);

  absl::Status Handle(const grpc::ByteBuffer& message);
  absl::Status HandleBallot(const wire::VoteView& view, const grpc::ByteBuffer& message);
  template <typename What>
  absl::Status Post(What what);
  template <typename What>
  void Tell(What what);
  void Queue(const grpc::ByteBuffer& message);
  // What is queued behind the message that is being sent.
  enum class Queued : uint8_t { kSentFirst, kDropped };
  void CloseLocked(absl::Status status, Queued queued, Todo* todo)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Starts the next write, or finishes, when nothing is being written.
  void AdvanceLocked(Todo* todo) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Do(const Todo& todo) ABSL_LOCKS_EXCLUDED(mu_);
  // The only ways in which queue_ grows and shrinks: by its back, and by either end.
  void PushLocked(const grpc::ByteBuffer& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EraseLocked(std::deque<grpc::ByteBuffer>::iterator message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  run::RunThread* const run_;
  StreamTable* const table_;
  const run::PeerId id_;
  const std::string ticket_;
  const run::PeerIdentity identity_;
  // Inputs that wait for the run; a number only.
  const std::shared_ptr<std::atomic<uint32_t>> waiting_;

  // Only in OnReadDone, of which there is one at a time.
  grpc::ByteBuffer incoming_;
  bool joined_ = false;
  bool left_ = false;

  // Only in bytes(): the run's thread.
  struct Counter;
  mutable std::unique_ptr<Counter> counter_;

  mutable Mutex mu_;
  State state_ ABSL_GUARDED_BY(mu_) = State::kOpen;
  grpc::CallbackServerContext* context_ ABSL_GUARDED_BY(mu_);  // nullptr once kDone
  std::shared_ptr<ServerSession> self_ ABSL_GUARDED_BY(mu_);   // until kDone
  std::shared_ptr<BallotSlots> slots_ ABSL_GUARDED_BY(mu_);
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mu_);  // front: being written while writing_
  size_t queued_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool gone_told_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<size_t> notify_below_ ABSL_GUARDED_BY(mu_);
  absl::Status close_status_ ABSL_GUARDED_BY(mu_);
  struct {
    run::PeerBytes messages;     // of this stream, without what lies around them
    run::PeerBytes transferred;  // by transfers on the same connection
  } moved_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote::rpc
