#pragma once
// The streams that are open, by the tickets with which their state transfers, which are calls of
// their own, find them.

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "common/mutex.h"
#include "server/run/peer.h"

namespace signvote::rpc {

class ServerSession;

// Threads: thread-safe. Bounded by the number of open streams.
class StreamTable {
 public:
  run::PeerId NextId() {
    MutexLock lock(&mu_);
    return run::PeerId(++last_id_);
  }
  void Add(const std::string& ticket, std::weak_ptr<ServerSession> session) {
    MutexLock lock(&mu_);
    sessions_[ticket] = std::move(session);
  }
  void Remove(const std::string& ticket) {
    MutexLock lock(&mu_);
    sessions_.erase(ticket);
  }
  // nullptr: no open stream has this ticket.
  std::shared_ptr<ServerSession> Find(const std::string& ticket) const {
    MutexLock lock(&mu_);
    const auto it = sessions_.find(ticket);
    return it == sessions_.end() ? nullptr : it->second.lock();
  }

 private:
  mutable Mutex mu_;
  uint64_t last_id_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::string, std::weak_ptr<ServerSession>> sessions_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote::rpc
