#pragma once
// A bounded queue between threads. Every queue of this project has a bound; a full one pushes back.

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

#include "common/clock.h"
#include "common/mutex.h"

namespace signvote {

// Threads: thread-safe, any number of producers and consumers.
template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // False when full or closed; `item` is then untouched.
  [[nodiscard]] bool TryPush(T&& item) ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(&mu_);
      if (closed_ || items_.size() >= capacity_) return false;
      items_.push_back(std::move(item));
    }
    cv_.NotifyOne();
    return true;
  }
  // Waits up to `timeout`; nullopt on time-out, or when closed and drained.
  std::optional<T> Pop(Duration timeout) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(&mu_);
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (items_.empty()) {
      const auto left = deadline - std::chrono::steady_clock::now();
      if (closed_ || left <= Duration::zero()) return std::nullopt;
      cv_.WaitFor(&mu_, left);
    }
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    return item;
  }
  // After this nothing is accepted; what is queued can still be popped.
  void Close() ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(&mu_);
      closed_ = true;
    }
    cv_.NotifyAll();
  }
  size_t size() const ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(&mu_);
    return items_.size();
  }

 private:
  const size_t capacity_;
  mutable Mutex mu_;
  CondVar cv_;
  std::deque<T> items_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace signvote
