#pragma once
// Moves the master replica off the critical path: a thread that applies committed rounds in order.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/mutex.h"
#include "server/replica/master_replica.h"

namespace signvote {

// Ownership:  does not own the replica, which must outlive it.
// Threads:    one internal thread; methods are thread-safe. on_applied runs on the internal thread.
// Invariants: at most backlog_max commits are waiting, so that those who wait for room are slowed,
//             never memory filled.
class Applier {
 public:
  struct Applied {
    Round next_round;                // the replica holds all commits before it
    std::optional<uint64_t> digest;  // when the commit asked for it
    Duration took{};                 // apply and digest
  };
  struct Options {
    size_t backlog_max = 4;
    Duration delay{};  // before each commit; for tests that show who waits for the applier
    std::function<void(const Applied&)> on_applied;
  };

  Applier(MasterReplica* replica, Clock* clock, Options options);
  ~Applier();

  // False while backlog_max commits wait; `record` is then untouched.
  [[nodiscard]] bool TryPush(std::shared_ptr<const CommitRecord> record);
  // Waits until TryPush() can succeed; false after `timeout`.
  bool WaitForRoom(Duration timeout);
  // Waits until everything pushed is applied; false after `timeout`.
  bool WaitUntilIdle(Duration timeout);
  size_t backlog() const;  // commits not yet applied
  // A copy of the whole replica at one round, which is returned; holds the applier for as long as
  // the copy takes.
  Round Snapshot(std::vector<float>* out) const;
  // Ends the thread after the commit it is working on. Idempotent.
  void Stop();

 private:
  void Run();

  // Constant after construction.
  MasterReplica* const replica_;
  Clock* const clock_;
  const Options options_;

  mutable Mutex replica_mu_ ABSL_ACQUIRED_BEFORE(mu_);  // held while one commit is applied

  mutable Mutex mu_;
  CondVar work_, room_;
  std::deque<std::shared_ptr<const CommitRecord>> queue_
      ABSL_GUARDED_BY(mu_);  // front: being applied
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace signvote
