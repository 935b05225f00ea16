#pragma once
// Parameters in and out: the upload of the initial ones, and the streaming of the master replica to
// those who join. Both are calls of their own, tied to a stream by its ticket; the run says which
// may go on, and a call ends with its stream.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "common/clock.h"
#include "common/mutex.h"
#include "proto/wire/socket_bytes.h"
#include "server/rpc/background.h"
#include "server/rpc/stream_table.h"
#include "server/run/minimal_rate.h"
#include "server/run/run_thread.h"

namespace signvote::rpc {

// Bounds of these calls.
struct TransferLimits {
  // Calls that have not shown a ticket; the oldest makes room. An honest one shows it in the time
  // that the network takes once: whoever wants to push it out has to open this many meanwhile.
  uint32_t unclaimed_max = 256;
  Duration claim_timeout = std::chrono::seconds(10);     // from the call's start to its ticket
  Duration progress_timeout = std::chrono::seconds(60);  // nothing moves
  // What a fetch must take (run/minimal_rate.h), as an upload must bring: a link that carries 300
  // kbit/s for it alone is enough. Beyond `full_rate_calls` at a time each needs as much less,
  // because then it may be the server's link that is slow.
  run::MinimalRate::Options fetch_rate{.window = std::chrono::minutes(5),
                                       .bytes_per_second_min = uint64_t{32} << 10};
  uint32_t full_rate_calls = 64;
  Duration end_timeout = std::chrono::seconds(2);  // to take the last message, once it is over
  uint64_t first_message_bytes_max = uint64_t{64} << 10;  // it holds a ticket
};

class Transfer;

// Finds the connection to `peer` among the process's own: a look at all of them.
using SocketFinder = std::function<wire::SocketByteCounter(const std::string& peer)>;
wire::SocketByteCounter FindSocket(const std::string& peer);

// What every transfer uses, and the thread that looks at their time.
// Ownership:  outlives the transfers that gRPC still knows; points to run and table.
// Threads:    thread-safe. One internal thread.
class Transfers {
 public:
  Transfers(run::RunThread* run, StreamTable* table, TransferLimits limits,
            SocketFinder find_socket);
  ~Transfers();

  run::RunThread* run() const { return run_; }
  StreamTable* table() const { return table_; }
  const TransferLimits& limits() const { return limits_; }
  const SocketFinder& find_socket() const { return find_socket_; }
  Background* background() { return &background_; }

  // A call begins, which counts as unclaimed until Claimed(). Where that makes too many the oldest
  // of them ends, never this one.
  void Open(const std::shared_ptr<Transfer>& transfer);
  // It has shown its ticket, or it has ended. Idempotent.
  void Claimed(const Transfer& transfer);
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
  const SocketFinder find_socket_;

  Background background_;

  mutable Mutex mu_;
  CondVar stopped_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t opened_ ABSL_GUARDED_BY(mu_) = 0;  // calls, ever: Transfer::number()
  // Invariant: at most unclaimed_max, by number, the oldest first.
  std::map<uint64_t, std::weak_ptr<Transfer>> unclaimed_ ABSL_GUARDED_BY(mu_);
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
