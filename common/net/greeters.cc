#include "common/net/greeters.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>

#include "common/net/unique_fd.h"

namespace signvote {
namespace {

// Looked at for each that needs a place: whoever closes them tells nobody.
constexpr int kLooks = 8;
// Between two attempts when those that were turned away are slow to be closed.
constexpr Duration kRetry = std::chrono::milliseconds(1);

// Identifies a socket while it is open, whatever becomes of its descriptor's number. 0: no socket.
uint64_t InodeOf(int fd) {
  struct stat info {};
  return ::fstat(fd, &info) == 0 && S_ISSOCK(info.st_mode) ? info.st_ino : 0;
}

Endpoint PeerOf(int fd) {
  sockaddr_storage peer{};
  socklen_t size = sizeof(peer);
  // One that has no peer any more is settled by nobody.
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) != 0) return {};
  return EndpointOf(peer).value_or(Endpoint{});
}

}  // namespace

bool Greeters::Lent::Open() const { return InodeOf(fd) == inode; }

void Greeters::Lent::ShutDown() const {
  // The number may come to stand for another socket at any moment: a copy is made, looked at, used.
  // Where there is no descriptor for it the handshake's own time-out must do.
  const UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid() || InodeOf(copy.get()) != inode) return;
  // Nothing of it shall stay in the kernel.
  const linger at_once{.l_onoff = 1, .l_linger = 0};
  (void)::setsockopt(copy.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  (void)::shutdown(copy.get(), SHUT_RDWR);  // fails where the peer has gone already
}

std::optional<Time> Greeters::Enter(int fd, Time now) {
  const Greeter greeter{{fd, InodeOf(fd)}, PeerOf(fd)};
  MutexLock lock(&mu_);
  wanted_ = false;
  for (int i = 0; i < kLooks && room_.full(); ++i) LookAtOne();
  if (room_.full() && !TurnOneAway(now)) {
    wanted_ = true;
    return std::max(room_.MayTurnAwayAt(), now + kRetry);
  }
  const Id id = next_id_++;
  room_.Enter(id);
  greeters_.emplace(id, greeter);
  by_peer_[greeter.peer] = id;
  return std::nullopt;
}

bool Greeters::Settle(const Endpoint& peer) {
  MutexLock lock(&mu_);
  const auto it = by_peer_.find(peer);
  if (it == by_peer_.end()) return false;
  Forget(it->second);
  return wanted_;
}

size_t Greeters::Count() {
  MutexLock lock(&mu_);
  for (size_t i = room_.size(); i > 0; --i) LookAtOne();
  return room_.size();
}

uint64_t Greeters::turned_away() const {
  MutexLock lock(&mu_);
  return turned_away_;
}

void Greeters::LookAtOne() {
  const std::optional<Id> id = room_.LookAtNext();
  if (id.has_value() && !greeters_.at(*id).lent.Open()) Forget(*id);
}

bool Greeters::TurnOneAway(Time now) {
  std::erase_if(leaving_, [](const Lent& lent) { return !lent.Open(); });
  if (leaving_.size() >= kLeavingMax) return false;
  const std::optional<Id> id = room_.TurnAway(now);
  if (!id.has_value()) return false;
  leaving_.push_back(greeters_.at(*id).lent);
  leaving_.back().ShutDown();
  Forget(*id);
  ++turned_away_;
  return true;
}

void Greeters::Forget(Id id) {
  (void)room_.Leave(id);  // false: it was turned away
  const auto it = greeters_.find(id);
  // A later connection may come from the same port.
  const auto named = by_peer_.find(it->second.peer);
  if (named != by_peer_.end() && named->second == id) by_peer_.erase(named);
  greeters_.erase(it);
}

}  // namespace signvote
