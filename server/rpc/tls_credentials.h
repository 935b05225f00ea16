#pragma once
// Server credentials whose certificates can be read again while the server runs.

#include <memory>

#include <grpcpp/security/server_credentials.h>

#include "common/mutex.h"
#include "proto/wire/security.h"

namespace signvote::rpc {

// Handshakes that begin after Replace() use the new material; connections that exist go on.
// Threads: thread-safe.
class TlsSource {
 public:
  explicit TlsSource(wire::TlsMaterial material);

  void Replace(wire::TlsMaterial material);
  // Grows with each Replace(); from 1.
  uint64_t version() const;
  wire::TlsMaterial material() const;

 private:
  mutable Mutex mu_;
  uint64_t version_ ABSL_GUARDED_BY(mu_) = 1;
  wire::TlsMaterial material_ ABSL_GUARDED_BY(mu_);
};

// As wire::MtlsServerCredentials(), of what `source` holds at each handshake. The caller keeps them
// until the server is destroyed: gRPC's builder drops them once the server listens, and each
// handshake asks them.
std::shared_ptr<grpc::ServerCredentials> ReloadingCredentials(std::shared_ptr<TlsSource> source);

}  // namespace signvote::rpc
