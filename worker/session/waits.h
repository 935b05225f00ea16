#pragma once
// How the caller's thread of a session waits: until something holds, until a deadline has passed, or
// until the program says that it wants its thread back.
//
// Threads: constant after construction; `interrupted` is asked on the thread that waits, under no
//          lock.

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/mutex.h"

namespace signvote {

class Waits {
 public:
  // How often `interrupted` is asked.
  static constexpr Duration kInterruptedEvery = std::chrono::milliseconds(100);

  // `interrupted` may be empty: then waits are ended by events and deadlines alone.
  Waits(const Clock* clock, std::function<bool()> interrupted)
      : clock_(clock), interrupted_(std::move(interrupted)) {}

  const Clock* clock() const { return clock_; }

  // Waits for `predicate`, which is called under `mu`; who makes it true notifies `changed`. OK: it
  // held. CANCELLED: interrupted. DEADLINE_EXCEEDED.
  template <typename Predicate>
  absl::Status Until(Mutex* mu, CondVar* changed, Time deadline, const Predicate& predicate) const
      ABSL_LOCKS_EXCLUDED(mu) {
    for (;;) {
      Time until = deadline;
      if (interrupted_) until = std::min(until, clock_->Now() + kInterruptedEvery);
      {
        MutexLock lock(mu);
        if (changed->WaitUntil(mu, clock_, until, predicate)) return absl::OkStatus();
      }
      if (interrupted_ && interrupted_()) return absl::CancelledError("interrupted");
      if (clock_->Now() >= deadline) return absl::DeadlineExceededError("waited too long");
    }
  }

 private:
  const Clock* const clock_;
  const std::function<bool()> interrupted_;
};

}  // namespace signvote
