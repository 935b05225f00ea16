#include "worker/session/wire_meter.h"

namespace signvote {

void WireMeter::OnMessage(const std::string& peer, uint32_t mark) {
  MutexLock lock(&mu_);
  if (counter_) return;
  counter_.emplace(peer, 0, mark);
  counted_ = {};
  rounds_ = false;
}

bool WireMeter::BeginRounds() {
  MutexLock lock(&mu_);
  if (rounds_) return false;
  ReadLocked();
  rounds_ = true;
  return true;
}

bool WireMeter::rounds_begun() const {
  MutexLock lock(&mu_);
  return rounds_;
}

void WireMeter::End() {
  MutexLock lock(&mu_);
  ReadLocked();
  counter_.reset();
  rounds_ = false;
}

void WireMeter::AddTransfer(const wire::SocketBytes& moved) {
  MutexLock lock(&mu_);
  totals_.setup.sent += moved.sent;
  totals_.setup.received += moved.received;
}

SessionBytes WireMeter::Read() {
  MutexLock lock(&mu_);
  ReadLocked();
  return totals_;
}

void WireMeter::ReadLocked() {
  if (!counter_) return;
  const std::optional<wire::SocketBytes> now = counter_->Read();
  if (!now) return;
  wire::SocketBytes& to = rounds_ ? totals_.rounds : totals_.setup;
  to.sent += now->sent - counted_.sent;
  to.received += now->received - counted_.received;
  counted_ = *now;
}

}  // namespace signvote
