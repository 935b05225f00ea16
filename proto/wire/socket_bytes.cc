#include "proto/wire/socket_bytes.h"

#include <dirent.h>
// <netinet/tcp.h> has a struct tcp_info without the byte counters.
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <charconv>
#include <cstddef>
#include <cstring>
#include <optional>

#include "common/net/endpoint.h"

namespace signvote::wire {
namespace {

using NameFn = int (*)(int, sockaddr*, socklen_t*);
std::optional<Endpoint> EndOf(NameFn name, int fd) {
  sockaddr_storage storage{};
  socklen_t size = sizeof(storage);
  if (name(fd, reinterpret_cast<sockaddr*>(&storage), &size) != 0) return std::nullopt;
  return EndpointOf(storage);
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
  const std::optional<Endpoint> wanted = EndpointOfPeer(peer);
  if (!wanted) return;
  DIR* const folder = opendir("/proc/self/fd");
  if (folder == nullptr) return;
  int marked = -1, unmarked = -1;
  int count_marked = 0, count_unmarked = 0;
  while (const dirent* entry = readdir(folder)) {
    int fd = -1;
    const char* const end = entry->d_name + std::strlen(entry->d_name);
    if (std::from_chars(entry->d_name, end, fd).ptr != end || fd < 0) continue;
    if (InodeOf(fd) == 0 || EndOf(&getpeername, fd) != wanted) continue;
    if (local_port != 0) {
      const std::optional<Endpoint> local = EndOf(&getsockname, fd);
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
