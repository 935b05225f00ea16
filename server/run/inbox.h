#pragma once
// What other threads hand to the run's thread.

#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/mutex.h"

namespace signvote::run {

// Threads: any number of producers, one consumer, which takes everything at once.
// Memory:  bounded by its producers: a session by its messages that are not processed yet, the
//          helpers by what was asked of them.
template <typename T>
class Inbox {
 public:
  // False after Close(); `item` is then dropped.
  [[nodiscard]] bool Push(T item) {
    {
      MutexLock lock(&mu_);
      if (closed_) return false;
      items_.push_back(std::move(item));
      if (items_.size() > 1) return true;  // the consumer has been woken for the first one
    }
    cv_.NotifyOne();
    return true;
  }
  // Waits up to `timeout` for an item and takes all of them; none on time-out. False after Close():
  // what was taken is then the last.
  bool TakeAll(Duration timeout, std::vector<T>* out) {
    out->clear();
    MutexLock lock(&mu_);
    if (items_.empty() && !closed_ && timeout > Duration::zero()) {
      (void)cv_.WaitFor(&mu_, timeout);  // the caller looks again
    }
    out->swap(items_);
    return !closed_;
  }
  // What is here can still be taken; nobody waits any more.
  void Close() {
    {
      MutexLock lock(&mu_);
      closed_ = true;
    }
    cv_.NotifyAll();
  }

 private:
  Mutex mu_;
  CondVar cv_;
  std::vector<T> items_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace signvote::run
