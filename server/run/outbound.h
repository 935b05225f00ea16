#pragma once
// What is on its way to the workers.

#include <algorithm>
#include <atomic>
#include <cstddef>

#include "common/check.h"
#include "common/clock.h"
#include "common/mutex.h"

namespace signvote::run {

// Bytes that all sessions together have queued and gRPC has not written yet, and a wait for the moment
// when nothing is left: what nobody waits for leaves memory and processors to it until then.
//
// Ownership:  does not own the clock, which must move on by itself.
// Threads:    thread-safe. Add() and Remove() run for every message of every session: they take no
//             lock, but for the Remove() that leaves nothing.
// Invariants: nothing is removed that was not added.
class Outbound {
 public:
  explicit Outbound(const Clock* clock) : clock_(clock) {}

  void Add(size_t bytes) { bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  void Remove(size_t bytes) {
    // Before the bytes go: who sees that nothing is left also sees since when.
    removed_at_.store(clock_->Now(), std::memory_order_relaxed);
    const size_t before = bytes_.fetch_sub(bytes, std::memory_order_acq_rel);
    SIGNVOTE_CHECK(before >= bytes);
    if (before > bytes) return;
    {
      // Whoever has looked and seen some does not yet wait until it lets go of the lock.
      MutexLock lock(&mu_);
    }
    empty_.NotifyAll();
  }
  // Waits until nothing has been on its way for `quiet`: what is written still lies in sockets for a
  // while. False: something was, all of `timeout`.
  bool WaitUntilQuiet(Duration quiet, Duration timeout) {
    const Time until = clock_->Now() + timeout;
    MutexLock lock(&mu_);
    while (true) {
      const bool empty = bytes_.load(std::memory_order_acquire) == 0;
      const Time now = clock_->Now();
      const Time quiet_at = removed_at_.load(std::memory_order_relaxed) + quiet;
      if (empty && now >= quiet_at) return true;
      if (now >= until) return false;
      (void)empty_.WaitFor(&mu_, (empty ? std::min(quiet_at, until) : until) - now);  // looks again
    }
  }

 private:
  const Clock* const clock_;
  std::atomic<size_t> bytes_ = 0;
  std::atomic<Time> removed_at_{Time{}};
  Mutex mu_;  // guards nothing: who waits must not miss the notification
  CondVar empty_;
};

}  // namespace signvote::run
