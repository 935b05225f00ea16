#pragma once
// Accepts connections, and keeps those that are nobody's yet from using up the process's descriptors.
//
// A connection is at first *quiet*: it has sent nothing, and costs a descriptor. With its first byte
// it is handed on to whoever speaks the protocol, and *greets* until Settle() says that it has
// shown what it came for. Settled ones are no concern of this class. Quiet and greeting ones have a
// WaitingRoom each: when a room is full, one of it goes. Of the quiet it is closed here; of the
// greeting, whose descriptor is another's, it is shut down, and whoever has it finds it at its end.
// While no room may turn anybody away, the next ones wait in the kernel's queue.
//
// A reserve of descriptors is left to the rest of the process: a connection that would take of it
// costs a quiet one its place, and where there is none it is closed.
//
// Ownership: owns its sockets, and each connection until it is handed on. Of those that greet it
//            keeps the descriptor's number and the socket's inode, and touches no other socket
//            should the number have come to stand for one.
// Threads:   one thread of its own between Start() and Stop(), on which connections are handed on.
//            Settle() and state() are thread-safe; the rest is for one thread.
// Failure:   Bind() as ListenOn(). Without a free descriptor or memory accepting pauses for a moment,
//            and state() says so.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/host_port.h"
#include "common/net/endpoint.h"
#include "common/net/waiting_room.h"
#include "common/rng.h"

namespace signvote {

struct ListenerOptions {
  HostPort address;
  uint32_t unacknowledged_ms = 20'000;  // ListenOn()
  WaitingRoom::Options quiet;
  WaitingRoom::Options greeting;
  Duration quiet_max = std::chrono::seconds(20);  // longer silence is hung up on
  // What the process may have open, and what of it connections may not take.
  uint64_t descriptors_max = 1024;
  uint64_t descriptors_reserved = 64;
};

struct ListenerState {
  uint64_t waiting = 0;      // quiet and greeting
  uint64_t turned_away = 0;  // ever; silence hung up on is not among them
  // In the last kRecently: some were turned away for the sake of others; some for want of descriptors.
  bool crowded = false;
  bool out_of_descriptors = false;
};

class Listener {
 public:
  // Takes the descriptor over, and closes it at last. Must not wait.
  using HandOn = std::function<void(int fd)>;
  static constexpr Duration kRecently = std::chrono::seconds(10);

  // Connections wait in the kernel's queue until Start(). `clock` must outlive the object.
  static absl::StatusOr<std::unique_ptr<Listener>> Bind(const ListenerOptions& options, Rng rng,
                                                        Clock* clock);
  virtual ~Listener() = default;  // stops

  virtual uint16_t port() const = 0;
  virtual void Start(HandOn hand_on) = 0;
  // Closes the listening sockets and what is quiet. Idempotent. Nothing is handed on afterwards.
  virtual void Stop() = 0;
  // The connection from `peer` is somebody's: from now on it stays. Others are ignored.
  virtual void Settle(const Endpoint& peer) = 0;
  virtual ListenerState state() = 0;
};

// How many places each room may have where `sessions_max` connections shall be settled at a time.
// Few: the descriptors do not suffice for the sessions; then they share what there is.
struct Places {
  size_t each = 1;
  bool few = false;
  uint64_t descriptors_wanted = 0;  // from here on they suffice
};
Places PlacesFor(uint64_t descriptors_max, uint64_t descriptors_reserved, uint64_t sessions_max);

}  // namespace signvote
