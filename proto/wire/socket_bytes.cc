#include "proto/wire/socket_bytes.h"

#include <dirent.h>
// <netinet/tcp.h> has a struct tcp_info without the byte counters.
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <charconv>
#include <cstring>
#include <set>
#include <utility>

#include "common/mutex.h"
#include "common/net/endpoint.h"

namespace signvote::wire {
namespace {

// Connections that some counter of this process watches, so that two sessions to one server never
// watch the same.
class Claims {
 public:
  bool Take(uint64_t inode) {
    MutexLock lock(&mu_);
    return taken_.insert(inode).second;
  }
  void Release(uint64_t inode) {
    MutexLock lock(&mu_);
    taken_.erase(inode);
  }

 private:
  Mutex mu_;
  std::set<uint64_t> taken_ ABSL_GUARDED_BY(mu_);
};

Claims& GlobalClaims() {
  static Claims* const claims =
      new Claims;  // never destroyed: counters may outlive static destructors
  return *claims;
}

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

}  // namespace

SocketByteCounter::SocketByteCounter(std::string peer, uint16_t local_port)
    : peer_(std::move(peer)), local_port_(local_port) {
  const std::optional<Endpoint> wanted = EndpointOfPeer(peer_);
  if (!wanted) return;
  DIR* const folder = opendir("/proc/self/fd");
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    int fd = -1;
    const char* const end = entry->d_name + std::strlen(entry->d_name);
    if (std::from_chars(entry->d_name, end, fd).ptr != end || fd < 0) continue;
    const uint64_t inode = InodeOf(fd);
    if (inode == 0 || EndOf(&getpeername, fd) != wanted) continue;
    if (local_port_ != 0) {
      const std::optional<Endpoint> local = EndOf(&getsockname, fd);
      if (!local || local->port != local_port_) continue;
    }
    if (!GlobalClaims().Take(inode)) continue;
    fd_ = fd;
    inode_ = inode;
    break;
  }
  closedir(folder);
}

SocketByteCounter::~SocketByteCounter() {
  if (inode_ != 0) GlobalClaims().Release(inode_);
}

SocketByteCounter::SocketByteCounter(SocketByteCounter&& other) noexcept
    : peer_(std::move(other.peer_)),
      local_port_(other.local_port_),
      fd_(std::exchange(other.fd_, -1)),
      inode_(std::exchange(other.inode_, 0)) {}

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
