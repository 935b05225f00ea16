#pragma once
// Bytes really on the wire: TCP payload of our own sockets (TLS and HTTP/2 included), read from the
// kernel's TCP_INFO.

#include <cstdint>
#include <optional>
#include <string>

namespace signvote::wire {

struct SocketBytes {
  uint64_t sent = 0;      // payload that the other end has acknowledged (tcpi_bytes_acked)
  uint64_t received = 0;  // tcpi_bytes_received
};

// Watches one TCP connection of this process. gRPC owns the socket; this class finds its descriptor
// among the process's own and checks at each reading that it is still the same connection.
// Nothing is shared between the counters of a process: who dials one peer several times gives each
// connection a mark, by which it is told from the others.
// Threads: not thread-safe.
class SocketByteCounter {
 public:
  // How a client marks a connection: TCP's user timeout, in milliseconds, which gRPC sets to the
  // channel's keepalive timeout. Within a second above the ten that are meant.
  static constexpr uint32_t kMarkFirst = 10001, kMarks = 999;

  // `peer` is the other end as gRPC names it ("ipv4:127.0.0.1:4711", "ipv6:%5B::1%5D:4711");
  // `local_port` this end's port, 0: any; `mark` the connection's, 0: none. Finding is a scan over
  // /proc/self/fd, once. Where two connections are alike none is watched, rather than the wrong one;
  // one without a mark counts as marked, for systems that do not keep it.
  SocketByteCounter(std::string peer, uint16_t local_port, uint32_t mark = 0);
  // nullopt: the connection is gone or was never found (a proxy, a unix socket).
  std::optional<SocketBytes> Read();

 private:
  int fd_ = -1;
  uint64_t inode_ =
      0;  // identifies the socket, whatever becomes of the descriptor's number; 0: none
};

}  // namespace signvote::wire
