#include "common/net/listening_sockets.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/net/endpoint.h"
#include "common/status.h"

namespace signvote {
namespace {

struct Address {
  sockaddr_storage storage{};
  socklen_t size = 0;
  int family() const { return storage.ss_family; }
};

Address AnyAddress(int family) {
  Address any;
  if (family == AF_INET6) {
    sockaddr_in6 in6{};
    in6.sin6_family = AF_INET6;
    std::memcpy(&any.storage, &in6, sizeof(in6));
    any.size = sizeof(in6);
  } else {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    std::memcpy(&any.storage, &in, sizeof(in));
    any.size = sizeof(in);
  }
  return any;
}

absl::StatusOr<std::vector<Address>> Resolve(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), nullptr, &hints, &found); error != 0) {
    return absl::UnavailableError(::gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  std::vector<Address> addresses;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_addrlen > sizeof(sockaddr_storage)) continue;
    Address address;
    std::memcpy(&address.storage, entry->ai_addr, entry->ai_addrlen);
    address.size = entry->ai_addrlen;
    addresses.push_back(address);
  }
  return addresses;
}

void SetPort(Address* address, uint16_t port) {
  // At the same place in both families.
  static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port));
  const in_port_t network = htons(port);
  std::memcpy(reinterpret_cast<char*>(&address->storage) + offsetof(sockaddr_in, sin_port),
              &network, sizeof(network));
}

absl::Status Refused() { return absl::UnavailableError(std::strerror(errno)); }

absl::StatusOr<UniqueFd> ListenAt(const Address& address, uint32_t unacknowledged_ms) {
  UniqueFd socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return Refused();
  const auto set = [&socket](int level, int name, int value) {
    // What cannot be set costs comfort; whether the address can be had bind() says.
    (void)::setsockopt(socket.get(), level, name, &value, sizeof(value));
  };
  set(SOL_SOCKET, SO_REUSEADDR, 1);
  if (address.family() == AF_INET6) set(IPPROTO_IPV6, IPV6_V6ONLY, 0);
  // Accepted connections inherit these.
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(unacknowledged_ms));
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.size) !=
          0 ||
      ::listen(socket.get(), SOMAXCONN) != 0) {
    return Refused();
  }
  return socket;
}

absl::StatusOr<uint16_t> PortOf(int fd) {
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return Refused();
  return EndpointOf(bound).value_or(Endpoint{}).port;
}

}  // namespace

absl::StatusOr<ListeningSockets> ListenOn(const HostPort& at, uint32_t unacknowledged_ms) {
  std::vector<Address> addresses;
  // One socket takes both families; on a machine without IPv6 one of IPv4 is tried instead.
  const bool any = at.host == "0.0.0.0" || at.host == "::";
  if (any) {
    addresses = {AnyAddress(AF_INET6), AnyAddress(AF_INET)};
  } else {
    SIGNVOTE_ASSIGN_OR_RETURN(addresses, Resolve(at.host));
  }
  ListeningSockets out{.port = at.port};
  absl::Status refused;
  for (Address& address : addresses) {
    SetPort(&address, out.port);
    absl::StatusOr<UniqueFd> socket = ListenAt(address, unacknowledged_ms);
    if (!socket.ok()) {
      refused = socket.status();
      continue;
    }
    SIGNVOTE_ASSIGN_OR_RETURN(out.port, PortOf(socket->get()));
    out.sockets.push_back(*std::move(socket));
    if (any) break;
  }
  if (out.sockets.empty()) return refused;
  if (!refused.ok()) {
    Log(any ? LogLevel::kInfo : LogLevel::kWarning,
        "one of the addresses to listen on cannot be had",
        {{"address", at.ToText()}, {"error", std::string(refused.message())}});
  }
  return out;
}

}  // namespace signvote
