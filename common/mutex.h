#pragma once
// Mutex and condition variable with clang thread-safety annotations over std::mutex.
//
// Debian's absl::Mutex is built without tsan's hooks and gives false races under it; std::mutex is
// understood by tsan, and the annotations are understood by clang's -Wthread-safety (preset
// `analyze`).

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "common/clock.h"
#include "common/may_wait.h"

namespace signvote {

class ABSL_LOCKABLE Mutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mu_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mu_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) { mu_->Lock(); }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mu_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mu_;
};

// Each wait takes a bound, because nothing here may hang.
class CondVar {
 public:
  // Waits until `predicate()` holds or `deadline` has passed on `clock`; returns whether it holds.
  // `predicate` is called under `mu`, and again after each notification. Who makes it true notifies:
  // a clock that is not the system's is only looked at again once a second.
  template <typename Predicate>
  bool WaitUntil(Mutex* mu, const Clock* clock, Time deadline, const Predicate& predicate)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    while (!predicate()) {
      const Duration left = deadline - clock->Now();
      if (left <= Duration::zero()) return false;
      WaitFor(mu, std::min<Duration>(left, std::chrono::seconds(1)));
    }
    return true;
  }
  // Returns false when `timeout` passed without a notification. May return true spuriously.
  bool WaitFor(Mutex* mu, std::chrono::nanoseconds timeout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    CheckMayWait("a wait for a condition");
    std::unique_lock<std::mutex> lock(mu->mu_, std::adopt_lock);
    const bool notified = cv_.wait_for(lock, timeout) == std::cv_status::no_timeout;
    lock.release();
    return notified;
  }
  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace signvote
