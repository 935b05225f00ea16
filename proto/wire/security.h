#pragma once
// Credentials: mTLS by default, plaintext only when asked for by name. docs/operations.md,
// "Security".
//
// Certificates carry a role as URI subject alternative name: "signvote:role:server",
// "signvote:role:worker" or "signvote:role:admin"; a worker's DNS subject alternative name is its
// worker name.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <grpcpp/client_context.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_context.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"

namespace signvote::wire {

// Paths of PEM files. All three or none.
struct TlsFiles {
  std::string ca;           // certificates that the other side's certificate must chain to
  std::string certificate;  // own certificate chain
  std::string key;          // own private key; must not be readable by others
};

// Reads the files and checks them before anything is dialled: key private (PERMISSION_DENIED), key
// and certificate belong together (INVALID_ARGUMENT, kBadInput), certificate within its validity
// (FAILED_PRECONDITION "…expired on …") and signed by the CA (FAILED_PRECONDITION "…not issued
// by…"). INVALID_ARGUMENT with exit code kBadInput: not PEM. Messages name file and remedy.
struct TlsMaterial {
  std::string ca_pem, certificate_pem, key_pem;
  std::vector<std::string> dns_names, uris;  // subject alternative names of the own certificate
};
absl::StatusOr<TlsMaterial> LoadTls(FileSystem* fs, const TlsFiles& files,
                                    int64_t now_unix_seconds);

// A server whose certificate does not say that it is one would be refused by every worker, one by
// one. INVALID_ARGUMENT with exit code kBadInput; names the file.
absl::Status RequireServerRole(const TlsMaterial& material, const TlsFiles& files);

std::shared_ptr<grpc::ServerCredentials> MtlsServerCredentials(const TlsMaterial& material);
std::shared_ptr<grpc::ChannelCredentials> MtlsChannelCredentials(const TlsMaterial& material);

enum class Role { kNone, kServer, kWorker, kAdmin };
// Who is at the other end of a call, from its verified certificate. Plaintext peers: authenticated
// = false.
struct Peer {
  bool authenticated = false;
  std::vector<std::string> dns_names;
  std::vector<Role> roles;
  std::string address;  // "ipv4:127.0.0.1:4711"
  bool HasRole(Role role) const;
};
Peer PeerOf(const grpc::ServerContextBase& context);
// The same for the client's side of a call, once it has heard from the server.
Peer PeerOf(const grpc::ClientContext& context);

}  // namespace signvote::wire
