#include "server/rpc/identity.h"

#include <arpa/inet.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/net/endpoint.h"
#include "proto/wire/security.h"

namespace signvote::rpc {
namespace {

// Where the IPv4 address lies in one that is mapped into IPv6.
constexpr size_t kMappedAt = 12;
constexpr size_t kNetworkBytes = 8;

}  // namespace

run::PeerIdentity IdentityOf(const grpc::ServerContextBase& context) {
  wire::Peer peer = wire::PeerOf(context);
  const bool worker = peer.HasRole(wire::Role::kWorker);
  const bool admin = peer.HasRole(wire::Role::kAdmin);
  std::string host = HostOf(peer.address);
  return {.address = std::move(peer.address),
          .host = std::move(host),
          .authenticated = peer.authenticated,
          .dns_names = std::move(peer.dns_names),
          .worker_role = worker,
          .admin_role = admin};
}

std::string HostOf(const std::string& address) {
  std::optional<Endpoint> endpoint = EndpointOfPeer(address);
  if (!endpoint.has_value()) return address;
  char text[INET6_ADDRSTRLEN];
  std::array<uint8_t, 16>& bytes = endpoint->address;
  if (IN6_IS_ADDR_V4MAPPED(bytes.data())) {
    return inet_ntop(AF_INET, bytes.data() + kMappedAt, text, sizeof(text));
  }
  std::fill(bytes.begin() + kNetworkBytes, bytes.end(), uint8_t{0});
  return absl::StrCat(inet_ntop(AF_INET6, bytes.data(), text, sizeof(text)), "/",
                      8 * kNetworkBytes);
}

}  // namespace signvote::rpc
