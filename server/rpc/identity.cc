#include "server/rpc/identity.h"

#include <utility>

#include "proto/wire/security.h"

namespace signvote::rpc {

run::PeerIdentity IdentityOf(const grpc::ServerContextBase& context) {
  wire::Peer peer = wire::PeerOf(context);
  const bool worker = peer.HasRole(wire::Role::kWorker);
  const bool admin = peer.HasRole(wire::Role::kAdmin);
  return {.address = std::move(peer.address),
          .authenticated = peer.authenticated,
          .dns_names = std::move(peer.dns_names),
          .worker_role = worker,
          .admin_role = admin};
}

}  // namespace signvote::rpc
