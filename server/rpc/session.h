#pragma once
// One worker's stream, on the server's side: bytes in, inputs for the engine's thread out, and a
// bounded queue of bytes back.

#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "proto/wire/security.h"
#include "proto/wire/wire.h"
#include "server/rpc/ballot_slots.h"
#include "server/rpc/inbox.h"

namespace signvote::rpc {

//   kOpen ──Close──▶ kClosing ──queue and write done──▶ kFinished ──OnDone──▶ kDone
//
// Ownership:  keeps itself alive until gRPC is done with it.
// Threads:    gRPC's callbacks run on gRPC's threads and never block; other methods: any thread.
// Failure:    a malformed message, a queue over its bound or a flood of messages closes the stream
//             with a status that says so; exactly one GoneIn and then one DoneIn reach the inbox,
//             whatever happened.
class ServerSession final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                            public std::enable_shared_from_this<ServerSession> {
 public:
  struct Options {
    RunId run_id;
    Epoch epoch;
    uint64_t queue_bytes_max = 0;  // sent by us and not yet taken by the network
    // Messages handed to the engine's thread and not yet processed, before Admit().
    uint32_t pending_max = 256;
  };

  // `context` is gRPC's and lives until OnDone.
  static std::shared_ptr<ServerSession> Start(grpc::CallbackServerContext* context, Inbox* inbox,
                                              Options options);

  const wire::Peer& peer() const { return peer_; }

  // From now on ballots are accepted into these slots.
  void Admit(std::shared_ptr<BallotSlots> slots);
  // Queues a message; the buffer's slices are shared, not copied. Dropped when the session is
  // closing.
  void Send(const grpc::ByteBuffer& message);
  size_t queued_bytes() const;
  // One RoomIn comes as soon as at most `bytes` are queued.
  void NotifyWhenBelow(size_t bytes);
  // Ends the stream: OK after everything queued was sent, any other status after the message that
  // is being sent.
  void Close(absl::Status status);
  bool closing() const;
  // Breaks the stream off when it does not end by itself (a worker that reads nothing).
  void Cancel();
  // The engine's thread has processed one input of this session.
  void Processed();
  // One state transfer at a time. False: one is running.
  bool BeginTransfer();
  void EndTransfer();

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

  ServerSession(grpc::CallbackServerContext* context, Inbox* inbox, Options options);

  absl::Status Handle(const grpc::ByteBuffer& message);
  absl::Status HandleBallot(const wire::VoteView& view, const grpc::ByteBuffer& message);
  template <typename What>
  absl::Status Post(What what);
  void CloseLocked(absl::Status status, Todo* todo) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Starts the next write, or finishes, when nothing is being written.
  void AdvanceLocked(Todo* todo) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Do(const Todo& todo) ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after construction.
  Inbox* const inbox_;
  const Options options_;
  const wire::Peer peer_;

  // Only in OnReadDone, of which there is one at a time.
  grpc::ByteBuffer incoming_;
  bool joined_ = false;
  bool left_ = false;

  mutable Mutex mu_;
  State state_ ABSL_GUARDED_BY(mu_) = State::kOpen;
  grpc::CallbackServerContext* context_ ABSL_GUARDED_BY(mu_);  // nullptr once kDone
  std::shared_ptr<ServerSession> self_ ABSL_GUARDED_BY(mu_);   // until kDone
  std::shared_ptr<BallotSlots> slots_ ABSL_GUARDED_BY(mu_);
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mu_);  // front: being written while writing_
  size_t queued_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool gone_told_ ABSL_GUARDED_BY(mu_) = false;
  bool notify_room_ ABSL_GUARDED_BY(mu_) = false;
  size_t notify_below_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status close_status_ ABSL_GUARDED_BY(mu_);
  uint32_t pending_ ABSL_GUARDED_BY(mu_) = 0;
  uint32_t pending_max_ ABSL_GUARDED_BY(mu_);
  bool transferring_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace signvote::rpc
