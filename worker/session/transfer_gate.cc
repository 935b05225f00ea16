#include "worker/session/transfer_gate.h"

namespace signvote {
namespace {

void StopIt(const std::shared_ptr<TransferStop>& transfer) {
  if (transfer != nullptr) transfer->Stop();
}

}  // namespace

void TransferGate::ConnectionBegins(uint64_t number) {
  MutexLock lock(&mu_);
  connection_ = number;
  live_ = true;
}

void TransferGate::ConnectionEnds() {
  std::shared_ptr<TransferStop> transfer;
  {
    MutexLock lock(&mu_);
    live_ = false;
    transfer = running_.lock();
  }
  changed_.NotifyAll();
  StopIt(transfer);
}

void TransferGate::Drain() {
  std::shared_ptr<TransferStop> transfer;
  {
    MutexLock lock(&mu_);
    drained_ = true;
    transfer = running_.lock();
  }
  changed_.NotifyAll();
  StopIt(transfer);
}

std::shared_ptr<TransferStop> TransferGate::Begin(uint64_t connection) {
  auto stop = std::make_shared<TransferStop>();
  MutexLock lock(&mu_);
  if (!OpenLocked(connection)) return nullptr;
  running_ = stop;
  return stop;
}

absl::Status TransferGate::Pause(uint64_t connection, Duration pause) {
  const absl::Status waited =
      waits_.Until(&mu_, &changed_, waits_.clock()->Now() + pause,
                   [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !OpenLocked(connection); });
  return absl::IsCancelled(waited) ? waited : absl::OkStatus();
}

}  // namespace signvote
