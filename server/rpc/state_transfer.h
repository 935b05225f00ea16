#pragma once
// Parameters in and out: the upload of the initial ones, and the streaming of the master replica to
// those who join. Both are calls of their own, tied to a stream by its ticket; the run says which
// may go on, and a call ends with its stream.

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "common/clock.h"
#include "common/mutex.h"
#include "server/rpc/background.h"
#include "server/rpc/stream_table.h"
#include "server/run/run_thread.h"

namespace signvote::rpc {

// Bounds of these calls.
struct TransferLimits {
  uint32_t unclaimed_max = 32;                           // calls that have not shown a ticket
  Duration claim_timeout = std::chrono::seconds(10);     // from the call's start to its ticket
  Duration progress_timeout = std::chrono::seconds(60);  // nothing moves
  Duration end_timeout = std::chrono::seconds(2);  // to take the last message, once it is over
  uint64_t first_message_bytes_max = uint64_t{64} << 10;  // it holds a ticket
};

class Transfer;

// What every transfer uses, and the thread that looks at their time.
// Ownership:  outlives the transfers that gRPC still knows; points to run and table.
// Threads:    thread-safe. One internal thread.
class Transfers {
 public:
  Transfers(run::RunThread* run, StreamTable* table, TransferLimits limits);
  ~Transfers();

  run::RunThread* run() const { return run_; }
  StreamTable* table() const { return table_; }
  const TransferLimits& limits() const { return limits_; }
  Background* background() { return &background_; }

  // RESOURCE_EXHAUSTED: too many calls have shown no ticket. Counted until Claimed().
  absl::Status Open(const std::shared_ptr<Transfer>& transfer);
  void Claimed();
  // Calls that gRPC knows; for tests.
  size_t open_calls() const;
  // Ends the threads. Idempotent. REQUIRES: no call begins any more.
  void Stop();

 private:
  void Watch();

  // Constant after construction.
  run::RunThread* const run_;
  StreamTable* const table_;
  const TransferLimits limits_;

  Background background_;

  mutable Mutex mu_;
  CondVar stopped_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  uint32_t unclaimed_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::weak_ptr<Transfer>> open_ ABSL_GUARDED_BY(mu_);

  std::thread watch_;
};

// FetchState and UploadState. Ownership: the reactors keep themselves alive until gRPC and the run
// have let go of them.
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartFetch(Transfers* transfers,
                                                       grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request);
grpc::ServerReadReactor<grpc::ByteBuffer>* StartUpload(Transfers* transfers,
                                                       grpc::CallbackServerContext* context,
                                                       grpc::ByteBuffer* response);

}  // namespace signvote::rpc
