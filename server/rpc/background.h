#pragma once
// A thread for what takes long and nobody waits for: copies of parameters, and the start of what
// makes them.

#include <deque>
#include <functional>
#include <thread>

#include "common/mutex.h"

namespace signvote::rpc {

// Threads: thread-safe. Jobs run one after the other, in order.
class Background {
 public:
  Background();
  ~Background();

  // After Stop() jobs are dropped.
  void Run(std::function<void()> job);
  // Ends the thread after the job it is at. Idempotent.
  void Stop();

 private:
  void Loop();

  Mutex mu_;
  CondVar work_;
  std::deque<std::function<void()>> jobs_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace signvote::rpc
