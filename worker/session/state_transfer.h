#pragma once
// FetchState and UploadState over a connection of their own, so that their bytes can be told from
// the rounds'.
//
// Threads: block the calling thread; every wait is bounded by `progress_timeout` and ended by the
//          stop.

#include <functional>
#include <memory>
#include <string>

#include <grpcpp/client_context.h>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "proto/wire/socket_bytes.h"
#include "worker/codec/replica_memory.h"
#include "worker/session/stream.h"

namespace signvote {

// Ends the transfers that run under it. Threads: thread-safe.
class TransferStop {
 public:
  // Breaks off the transfer that runs, and every later one.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);
  bool stopped() const ABSL_LOCKS_EXCLUDED(mu_);
  // A transfer under it was given up because TransferOptions::interrupted said so.
  bool interrupted() const ABSL_LOCKS_EXCLUDED(mu_);

  // ---- the transfer's side
  // False: stopped already. The context must outlive End().
  bool Begin(grpc::ClientContext* context) ABSL_LOCKS_EXCLUDED(mu_);
  void End() ABSL_LOCKS_EXCLUDED(mu_);
  void Interrupted() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  mutable Mutex mu_;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  bool interrupted_ ABSL_GUARDED_BY(mu_) = false;
};

struct TransferOptions {
  std::string ticket;
  Duration progress_timeout{};
  bool x0 = false;                    // fetch x0 too, which the memory keeps
  TransferStop* stop = nullptr;       // required
  std::function<bool()> interrupted;  // asked about ten times a second; may be empty
};

// One part of a plane, checked. `x0`: of x0, else of the replica.
struct FetchedPart {
  bool x0 = false;
  Round round;  // it holds all commits before this round
  uint64_t first = 0;
  uint64_t count = 0;
};

// Fetches the run's replica and, if asked to, x0. on_part is called for each part before it is
// written; parts come in ascending order, the replica's first, and cover all when OK is returned: of x0
// all or none, which says that the server has let go of it.
// `moved` gets the connection's bytes in any case.
// CANCELLED: stopped or interrupted. DATA_LOSS: a checksum differs. INVALID_ARGUMENT: the server
// broke the protocol. DEADLINE_EXCEEDED: no progress. Otherwise the server's status, that of the
// replica's memory, or that of on_part.
absl::Status FetchState(const Dialled& dialled, const TransferOptions& options,
                        ReplicaMemory* replica,
                        const std::function<absl::Status(const FetchedPart&)>& on_part,
                        wire::SocketBytes* moved);

// Sends the replica as the run's initial parameters.
absl::Status UploadState(const Dialled& dialled, const TransferOptions& options,
                         ReplicaMemory* replica, wire::SocketBytes* moved);

}  // namespace signvote
