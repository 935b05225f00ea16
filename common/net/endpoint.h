#pragma once
// One end of a TCP connection, in a form that can be compared.

#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

namespace signvote {

// An address as 16 bytes, IPv4 mapped into IPv6 because dual-stack sockets report it so, and a port.
// The scope of a link-local address is not part of it.
struct Endpoint {
  std::array<uint8_t, 16> address{};
  uint16_t port = 0;
  bool operator==(const Endpoint&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const Endpoint& e) {
    return H::combine(std::move(h), e.address, e.port);
  }
};

// nullopt: neither IPv4 nor IPv6.
std::optional<Endpoint> EndpointOf(const sockaddr_storage& address);

// As gRPC names the other end of a call: "ipv4:127.0.0.1:4711", "ipv6:%5B::1%5D:4711",
// "ipv6:[::1]:4711". nullopt: nothing of the kind.
std::optional<Endpoint> EndpointOfPeer(const std::string& peer);

}  // namespace signvote
