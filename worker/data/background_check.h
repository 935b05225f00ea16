#pragma once
// Reads a whole corpus once while training goes on, so that a token that the model has not is told
// in the first minutes and not when, after days, a minibatch meets it.

#include <atomic>
#include <thread>

#include "absl/status/status.h"
#include "worker/data/dataset.h"

namespace signvote {

// Ownership: the dataset must outlive it; owns its thread, which runs when nothing else wants the
//            processor.
// Threads:   thread-safe once made.
class BackgroundCheck {
 public:
  explicit BackgroundCheck(const Dataset* dataset);
  // Within the reading of some blocks.
  ~BackgroundCheck() = default;

  // What was found so far: OK, or what TrainBatch() would say of what it will meet.
  absl::Status found() const;
  bool done() const { return done_.load(std::memory_order_acquire); }

 private:
  absl::Status result_;  // constant once done_
  // Released by the thread when it has ended.
  std::atomic<bool> done_{false};
  std::jthread thread_;  // the last member: it ends before what it writes
};

}  // namespace signvote
