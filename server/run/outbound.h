#pragma once
// What is on its way to the workers.

#include <algorithm>
#include <cstddef>

#include "common/check.h"
#include "common/clock.h"
#include "common/mutex.h"

namespace signvote::run {

// Bytes that all sessions together have queued and gRPC has not written yet, and a wait for the moment
// when nothing is left: what nobody waits for leaves memory and processors to it until then.
//
// Ownership:  does not own the clock, which must move on by itself.
// Threads:    thread-safe; Add() and Remove() take a lock for a moment only.
// Invariants: nothing is removed that was not added.
class Outbound {
 public:
  explicit Outbound(const Clock* clock) : clock_(clock) {}

  void Add(size_t bytes) {
    MutexLock lock(&mu_);
    bytes_ += bytes;
  }
  void Remove(size_t bytes) {
    {
      MutexLock lock(&mu_);
      SIGNVOTE_CHECK(bytes_ >= bytes);
      bytes_ -= bytes;
      if (bytes_ > 0) return;
      empty_since_ = clock_->Now();
    }
    empty_.NotifyAll();
  }
  // Waits until nothing has been on its way for `quiet`: what is written still lies in sockets for a
  // while. False: something was, all of `timeout`.
  bool WaitUntilQuiet(Duration quiet, Duration timeout) {
    const Time until = clock_->Now() + timeout;
    MutexLock lock(&mu_);
    while (true) {
      const Time now = clock_->Now();
      if (bytes_ == 0 && now - empty_since_ >= quiet) return true;
      if (now >= until) return false;
      const Time look = bytes_ == 0 ? std::min(empty_since_ + quiet, until) : until;
      (void)empty_.WaitFor(&mu_, look - now);  // this loop looks again
    }
  }

 private:
  const Clock* const clock_;
  Mutex mu_;
  CondVar empty_;
  size_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  Time empty_since_ ABSL_GUARDED_BY(mu_){};
};

}  // namespace signvote::run
