#pragma once
// The listening gRPC server: services, health, reflection, limits.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "proto/wire/security.h"
#include "server/rpc/coordinator.h"

namespace signvote::rpc {

struct GrpcServerOptions {
  std::string listen;                    // "host:port"; port 0: any
  std::optional<wire::TlsMaterial> tls;  // nullopt: plaintext
  uint64_t message_bytes_max = uint64_t{64} << 20;
};

// Threads: one thread starts it and shuts it down; its calls run on gRPC's own.
class GrpcServer {
 public:
  // UNAVAILABLE with exit code kPortInUse when the address is taken or not this machine's.
  // `coordinator` must outlive the object.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(GrpcServerOptions options,
                                                           Coordinator* coordinator);
  virtual ~GrpcServer() = default;
  virtual int port() const = 0;
  // What grpc.health.v1 answers for signvote.v1.Training.
  virtual void SetServing(bool serving) = 0;
  // Refuses new calls; those that have not ended after `grace` are cancelled. Idempotent.
  virtual void Shutdown(Duration grace) = 0;
};

}  // namespace signvote::rpc
