#include "proto/wire/socket_bytes.h"

#include <arpa/inet.h>
#include <dirent.h>
// <netinet/tcp.h> has a struct tcp_info without the byte counters.
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace signvote::wire {
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

// An address as 16 bytes (IPv4 mapped into IPv6, because dual-stack sockets report it so) and a
// port.
struct Endpoint {
  in6_addr address{};
  uint16_t port = 0;
  bool operator==(const Endpoint& other) const {
    return port == other.port && std::memcmp(&address, &other.address, sizeof(address)) == 0;
  }
};

Endpoint FromIpv4(const in_addr& address, uint16_t port) {
  Endpoint endpoint;
  endpoint.address.s6_addr[10] = endpoint.address.s6_addr[11] = 0xff;
  std::memcpy(&endpoint.address.s6_addr[12], &address, sizeof(address));
  endpoint.port = port;
  return endpoint;
}

std::optional<Endpoint> FromSockaddr(const sockaddr_storage& storage) {
  if (storage.ss_family == AF_INET) {
    sockaddr_in in;
    std::memcpy(&in, &storage, sizeof(in));
    return FromIpv4(in.sin_addr, ntohs(in.sin_port));
  }
  if (storage.ss_family == AF_INET6) {
    sockaddr_in6 in6;
    std::memcpy(&in6, &storage, sizeof(in6));
    return Endpoint{in6.sin6_addr, ntohs(in6.sin6_port)};
  }
  return std::nullopt;
}

// "ipv4:127.0.0.1:4711", "ipv6:%5B::1%5D:4711", "ipv6:[::1]:4711".
std::optional<Endpoint> FromPeer(const std::string& peer) {
  const std::string text = PercentDecoded(peer);
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon < 5) return std::nullopt;
  unsigned port = 0;
  const char* const end = text.data() + text.size();
  if (std::from_chars(text.data() + colon + 1, end, port).ptr != end || port == 0 || port > 65535)
    return std::nullopt;
  std::string host = text.substr(5, colon - 5);
  if (text.compare(0, 5, "ipv4:") == 0) {
    in_addr address;
    if (inet_pton(AF_INET, host.c_str(), &address) != 1) return std::nullopt;
    return FromIpv4(address, static_cast<uint16_t>(port));
  }
  if (text.compare(0, 5, "ipv6:") == 0 && host.size() > 2 && host.front() == '[' &&
      host.back() == ']') {
    host = host.substr(1, host.size() - 2);
    host = host.substr(0, host.find('%'));  // a scope id
    Endpoint endpoint;
    if (inet_pton(AF_INET6, host.c_str(), &endpoint.address) != 1) return std::nullopt;
    endpoint.port = static_cast<uint16_t>(port);
    return endpoint;
  }
  return std::nullopt;
}

using NameFn = int (*)(int, sockaddr*, socklen_t*);
std::optional<Endpoint> EndpointOf(NameFn name, int fd) {
  sockaddr_storage storage{};
  socklen_t size = sizeof(storage);
  if (name(fd, reinterpret_cast<sockaddr*>(&storage), &size) != 0) return std::nullopt;
  return FromSockaddr(storage);
}

uint64_t InodeOf(int fd) {
  struct stat info {};
  return fstat(fd, &info) == 0 && S_ISSOCK(info.st_mode) ? info.st_ino : 0;
}

// Which connection a client's socket is marked as; 0: it is not marked.
uint32_t MarkOf(int fd) {
  unsigned timeout_ms = 0;
  socklen_t size = sizeof(timeout_ms);
  if (getsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, &size) != 0) return 0;
  constexpr uint32_t kFirst = SocketByteCounter::kMarkFirst;
  return timeout_ms >= kFirst && timeout_ms - kFirst < SocketByteCounter::kMarks ? timeout_ms : 0;
}

}  // namespace

SocketByteCounter::SocketByteCounter(std::string peer, uint16_t local_port, uint32_t mark) {
  const std::optional<Endpoint> wanted = FromPeer(peer);
  if (!wanted) return;
  DIR* const folder = opendir("/proc/self/fd");
  if (folder == nullptr) return;
  int marked = -1, unmarked = -1;
  int count_marked = 0, count_unmarked = 0;
  while (const dirent* entry = readdir(folder)) {
    int fd = -1;
    const char* const end = entry->d_name + std::strlen(entry->d_name);
    if (std::from_chars(entry->d_name, end, fd).ptr != end || fd < 0) continue;
    if (InodeOf(fd) == 0 || EndpointOf(&getpeername, fd) != wanted) continue;
    if (local_port != 0) {
      const std::optional<Endpoint> local = EndpointOf(&getsockname, fd);
      if (!local || local->port != local_port) continue;
    }
    const uint32_t its = mark == 0 ? 0 : MarkOf(fd);
    if (its != mark && its != 0) continue;  // another client's
    (its == mark ? marked : unmarked) = fd;
    ++(its == mark ? count_marked : count_unmarked);
  }
  closedir(folder);
  const bool by_mark = count_marked > 0;
  if ((by_mark ? count_marked : count_unmarked) != 1) return;
  fd_ = by_mark ? marked : unmarked;
  inode_ = InodeOf(fd_);
}

std::optional<SocketBytes> SocketByteCounter::Read() {
  if (fd_ < 0 || InodeOf(fd_) != inode_) return std::nullopt;
  tcp_info info{};
  socklen_t size = sizeof(info);
  if (getsockopt(fd_, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return std::nullopt;
  // Kernels before 4.1 have a shorter struct without the counters.
  if (size < offsetof(tcp_info, tcpi_bytes_received) + sizeof(info.tcpi_bytes_received))
    return std::nullopt;
  return SocketBytes{info.tcpi_bytes_acked, info.tcpi_bytes_received};
}

}  // namespace signvote::wire
