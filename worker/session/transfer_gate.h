#pragma once
// Whether a state transfer may run: it belongs to the connection whose welcome gave it its ticket,
// and is worth nothing when that ends or when this worker is to leave.
//
// Threads: thread-safe. The link's thread says when connections begin and end; the caller's thread
//          transfers.

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "worker/session/state_transfer.h"
#include "worker/session/waits.h"

namespace signvote {

class TransferGate {
 public:
  explicit TransferGate(Waits waits) : waits_(std::move(waits)) {}

  // Connection `number` is there, and none before it.
  void ConnectionBegins(uint64_t number) ABSL_LOCKS_EXCLUDED(mu_);
  // It has ended: what runs over it is broken off.
  void ConnectionEnds() ABSL_LOCKS_EXCLUDED(mu_);
  // This worker leaves: what runs is broken off, and nothing begins any more.
  void Drain() ABSL_LOCKS_EXCLUDED(mu_);

  // What ends the transfer that begins now; nullptr: it must not begin.
  std::shared_ptr<TransferStop> Begin(uint64_t connection) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits, unless Begin() would return nullptr before that. CANCELLED: interrupted.
  absl::Status Pause(uint64_t connection, Duration pause) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  bool OpenLocked(uint64_t connection) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return !drained_ && live_ && connection_ == connection;
  }

  const Waits waits_;

  Mutex mu_;
  CondVar changed_;
  uint64_t connection_ ABSL_GUARDED_BY(mu_) = 0;  // the live one, or the last
  bool live_ ABSL_GUARDED_BY(mu_) = false;
  bool drained_ ABSL_GUARDED_BY(mu_) = false;
  std::weak_ptr<TransferStop> running_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote
