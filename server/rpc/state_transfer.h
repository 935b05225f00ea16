#pragma once
// Parameters in and out: the upload of the initial ones by one worker under a lease, and the
// streaming of the master replica to those who join. Both are calls of their own, tied to a session
// by its ticket.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "proto/wire/socket_bytes.h"
#include "proto/wire/wire.h"
#include "server/replica/master_replica.h"
#include "server/rpc/session.h"
#include "server/rpc/tickets.h"

namespace signvote::rpc {

// What the transfer calls share with the engine's thread.
// Threads: thread-safe.
class StateHub {
 public:
  explicit StateHub(Clock* clock) : clock_(clock) {}

  TicketTable* tickets() { return &tickets_; }

  // ---- upload ----
  // From now on `session`, and nobody else, may write the initial parameters into `replica`, from
  // the first coordinate.
  void Grant(std::shared_ptr<ServerSession> session, std::shared_ptr<MasterReplica> replica);
  void Revoke();
  // When the lease's holder last made progress (or got it).
  Time last_progress() const;
  // FAILED_PRECONDITION: no lease, or another session's.
  absl::Status CheckLease(const ServerSession* session) const;
  // The next chunk. INVALID_ARGUMENT: not the next coordinates, too many of them, or a parameter
  // that is not finite; DATA_LOSS: checksum. *complete is set once every coordinate is there; the
  // lease is then over.
  absl::Status Write(const ServerSession* session, const wire::StateView& view,
                     const grpc::ByteBuffer& message, bool* complete);

  // ---- fetching ----
  // Set once the initial parameters are complete.
  void Publish(std::shared_ptr<const MasterReplica> replica);
  std::shared_ptr<const MasterReplica> published() const;

 private:
  // Constant after construction.
  Clock* const clock_;

  TicketTable tickets_;

  mutable Mutex mu_;
  std::shared_ptr<ServerSession> holder_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<MasterReplica> target_ ABSL_GUARDED_BY(mu_);
  uint64_t received_ ABSL_GUARDED_BY(mu_) = 0;  // coordinates
  Time last_progress_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<const MasterReplica> published_ ABSL_GUARDED_BY(mu_);
};

// What a finished transfer moved: TCP payload when it had a connection of its own and the kernel
// has counted all of it, else the bytes of its messages.
struct TransferBytes {
  uint64_t up = 0;
  uint64_t down = 0;
  bool on_session_connection = false;
};
// Runs on a gRPC thread when the call is over.
using TransferDone = std::function<void(std::shared_ptr<ServerSession>, TransferBytes)>;

// FetchState. Ownership: the reactors delete themselves in OnDone.
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartFetch(StateHub* hub,
                                                       grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       TransferDone done);
// UploadState. `uploaded` runs on a gRPC thread once every coordinate is there, before the worker
// is told.
grpc::ServerReadReactor<grpc::ByteBuffer>* StartUpload(
    StateHub* hub, grpc::CallbackServerContext* context, grpc::ByteBuffer* response,
    std::function<void(std::shared_ptr<ServerSession>)> uploaded, TransferDone done);

}  // namespace signvote::rpc
