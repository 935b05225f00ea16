#pragma once
// Connections that were handed on to whoever speaks the protocol and have not shown yet what they
// came for. Their descriptors are somebody else's, who closes them without a word; what is kept of
// each is the descriptor's number, the socket's inode and the peer's address.
//
// Threads:    thread-safe.
// Invariants: at most `places` greet; at most kLeavingMax beyond them were turned away and are not
//             closed yet. No socket but the one that was entered is ever looked at or shut down.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/net/endpoint.h"
#include "common/net/waiting_room.h"
#include "common/rng.h"

namespace signvote {

class Greeters {
 public:
  static constexpr size_t kLeavingMax = 64;

  Greeters(WaitingRoom::Options options, Rng rng) : room_(options, rng) {}

  // Gives the connection `fd` a place, if need be that of another one, which is shut down. Otherwise
  // it has none until somebody is settled, or until the time that is returned.
  // REQUIRES: `fd` is open, and stays so until it is handed on.
  std::optional<Time> Enter(int fd, Time now);
  // The connection from `peer` is somebody's, and no more of this class's concern. Whether an Enter()
  // waits for its place.
  bool Settle(const Endpoint& peer);
  // Those that are still open.
  size_t Count();
  uint64_t turned_away() const;

 private:
  using Id = WaitingRoom::Id;
  struct Lent {
    int fd = -1;
    uint64_t inode = 0;
    bool Open() const;
    void ShutDown() const;
  };
  struct Greeter {
    Lent lent;
    Endpoint peer;
  };

  void LookAtOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool TurnOneAway(Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Forget(Id id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable Mutex mu_;
  WaitingRoom room_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Id, Greeter> greeters_ ABSL_GUARDED_BY(mu_);  // those of room_
  absl::flat_hash_map<Endpoint, Id> by_peer_ ABSL_GUARDED_BY(mu_);  // the latest of each
  std::vector<Lent> leaving_ ABSL_GUARDED_BY(mu_);                  // shut down, not closed yet
  bool wanted_ ABSL_GUARDED_BY(mu_) = false;                        // an Enter() found no place
  Id next_id_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t turned_away_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace signvote
