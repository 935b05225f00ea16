#pragma once
// The listening gRPC server: services, health, reflection, limits. A Listener accepts, and gRPC is
// handed each connection at its first byte; with the first call on it, whichever that is, it is
// somebody's: with TLS it has shown a certificate by then.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "common/message_size.h"
#include "common/net/listener.h"
#include "common/rng.h"
#include "server/rpc/state_transfer.h"
#include "server/rpc/tls_credentials.h"
#include "server/run/run_thread.h"

namespace signvote::rpc {

struct GrpcServerOptions {
  std::string listen;              // "host:port"; port 0: any
  std::shared_ptr<TlsSource> tls;  // null: plaintext
  uint64_t message_bytes_max = kMessageBytesDefault;
  // What gRPC may take for messages on their way; beyond it gRPC breaks connections off until it has
  // less, whosever they are.
  uint64_t memory_bytes_max = uint64_t{2} << 30;
  // Workers connected at a time; what descriptors are left beside them goes to connections that are
  // nobody's yet.
  uint64_t workers_max = 64;
  uint64_t descriptors_max = 1024;     // of the process
  uint64_t descriptors_reserved = 64;  // of those, for HTTP, files and logs
  TransferLimits transfers;
  SocketFinder find_socket = FindSocket;
};

// Threads: one thread starts it and shuts it down; its calls run on gRPC's own.
class GrpcServer {
 public:
  // UNAVAILABLE with exit code kPortInUse when the address is taken or not this machine's. `run`,
  // `fs` and `clock` must outlive the object.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(GrpcServerOptions options,
                                                           run::RunThread* run, FileSystem* fs,
                                                           Rng rng, Clock* clock);
  virtual ~GrpcServer() = default;
  virtual int port() const = 0;
  // What grpc.health.v1 answers for signvote.v1.Training.
  virtual void SetServing(bool serving) = 0;
  // Of connections without a call.
  virtual ListenerState connections() = 0;
  // Refuses new connections and calls; those that have not ended after `grace` are cancelled. Idempotent.
  virtual void Shutdown(Duration grace) = 0;
  virtual const Transfers& transfers() const = 0;
};

}  // namespace signvote::rpc
