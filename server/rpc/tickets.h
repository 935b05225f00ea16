#pragma once
// Tickets tie a state transfer, which is a call of its own, to the session that was told to make
// it.

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "common/mutex.h"

namespace signvote::rpc {

class ServerSession;

// Threads: thread-safe. Bounded by the number of live sessions.
class TicketTable {
 public:
  void Add(const std::string& ticket, std::shared_ptr<ServerSession> session) {
    MutexLock lock(&mu_);
    sessions_[ticket] = std::move(session);
  }
  void Remove(const std::string& ticket) {
    MutexLock lock(&mu_);
    sessions_.erase(ticket);
  }
  // nullptr: no live session has this ticket.
  std::shared_ptr<ServerSession> Find(const std::string& ticket) const {
    MutexLock lock(&mu_);
    const auto it = sessions_.find(ticket);
    return it == sessions_.end() ? nullptr : it->second;
  }

 private:
  mutable Mutex mu_;
  std::map<std::string, std::shared_ptr<ServerSession>> sessions_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote::rpc
