#include "common/net/endpoint.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <charconv>
#include <cstring>

namespace signvote {
namespace {

std::string PercentDecoded(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '%' && text.size() - i > 2 &&
        std::from_chars(text.data() + i + 1, text.data() + i + 3, value, 16).ptr ==
            text.data() + i + 3) {
      out.push_back(static_cast<char>(value));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

Endpoint FromIpv4(const in_addr& address, uint16_t port) {
  Endpoint endpoint;
  endpoint.address[10] = endpoint.address[11] = 0xff;
  std::memcpy(&endpoint.address[12], &address, sizeof(address));
  endpoint.port = port;
  return endpoint;
}

Endpoint FromIpv6(const in6_addr& address, uint16_t port) {
  Endpoint endpoint;
  std::memcpy(endpoint.address.data(), &address, sizeof(address));
  endpoint.port = port;
  return endpoint;
}

}  // namespace

std::optional<Endpoint> EndpointOf(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    sockaddr_in in;
    std::memcpy(&in, &address, sizeof(in));
    return FromIpv4(in.sin_addr, ntohs(in.sin_port));
  }
  if (address.ss_family == AF_INET6) {
    sockaddr_in6 in6;
    std::memcpy(&in6, &address, sizeof(in6));
    return FromIpv6(in6.sin6_addr, ntohs(in6.sin6_port));
  }
  return std::nullopt;
}

std::optional<Endpoint> EndpointOfPeer(const std::string& peer) {
  const std::string text = PercentDecoded(peer);
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon < 5) return std::nullopt;
  unsigned port = 0;
  const char* const end = text.data() + text.size();
  if (std::from_chars(text.data() + colon + 1, end, port).ptr != end || port == 0 || port > 65535)
    return std::nullopt;
  std::string host = text.substr(5, colon - 5);
  if (text.starts_with("ipv4:")) {
    in_addr address;
    if (inet_pton(AF_INET, host.c_str(), &address) != 1) return std::nullopt;
    return FromIpv4(address, static_cast<uint16_t>(port));
  }
  if (text.starts_with("ipv6:") && host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
    host = host.substr(0, host.find('%'));  // a scope id
    in6_addr address;
    if (inet_pton(AF_INET6, host.c_str(), &address) != 1) return std::nullopt;
    return FromIpv6(address, static_cast<uint16_t>(port));
  }
  return std::nullopt;
}

}  // namespace signvote
