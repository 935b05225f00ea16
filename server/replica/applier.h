#pragma once
// Moves the master replica off the critical path: what waits to be applied, and the thread that
// does it.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/export_metadata.h"
#include "common/mutex.h"
#include "server/commit/commit_consumer.h"
#include "server/replica/master_replica.h"

namespace signvote {

// The commits that wait for the master replica, without a thread: whoever calls ApplyNext() applies
// them.
//
// Ownership:  does not own the replica, which must outlive it.
// Threads:    thread-safe. TryPush() and backlog() take a lock for a moment only, however long a
//             commit takes or hangs.
// Invariants: at most backlog_max commits wait, the one that is being applied included.
class Applier final : public CommitConsumer {
 public:
  // REQUIRES: backlog_max > 0.
  Applier(MasterReplica* replica, Clock* clock, size_t backlog_max);

  bool TryPush(const std::shared_ptr<const CommitRecord>& record) override;
  // Applies the oldest commit that waits. nullopt: none does, or another call or a copy has the
  // replica.
  std::optional<Applied> ApplyNext();
  // Waits until a commit waits and the replica is free; false after `timeout`, or when woken.
  bool WaitForWork(Duration timeout);
  // Ends every WaitForWork(), now and later.
  void Wake();
  // Waits until everything pushed is applied; false after `timeout`.
  bool WaitUntilIdle(Duration timeout);
  // Commits pushed since the beginning.
  uint64_t pushed() const;
  // Waits until the first `pushed` of them are applied; false after `timeout`, or when `give_up` says so,
  // which is asked as by TakeSnapshot().
  using GiveUp = std::function<bool()>;
  bool WaitUntilApplied(uint64_t pushed, Duration timeout, const GiveUp& give_up);
  // Commits not yet applied.
  size_t backlog() const;
  // Of the commits that are applied.
  std::optional<float> stepsize() const;

  // No commit from `round` on needs x0: its memory is given back by the ApplyNext() that comes to
  // that round.
  void DropX0From(Round round);

  // A copy of the whole replica at one round. While it is made commits wait here, not their
  // proposers. For a thread of its own, such as an export's: it waits for the commit at hand.
  struct Snapshot {
    Round round;
    std::vector<float> x;
    std::vector<float> x0;          // empty: not kept
    std::optional<float> stepsize;  // as of that round
  };
  enum class WithX0 { kNo, kYes };
  // DEADLINE_EXCEEDED: the applier was busy with one commit, or with copies, for all of `timeout`.
  // RESOURCE_EXHAUSTED: there is no memory for a copy. CANCELLED: `give_up` said so. That is asked,
  // under a lock of this object, whenever something has changed here; null: nobody gives up.
  absl::StatusOr<Snapshot> TakeSnapshot(WithX0 with_x0, Duration timeout, const GiveUp& give_up);
  // Those who wait ask their `give_up` again.
  void AskAgain();

 private:
  // REQUIRES: busy_ is this caller's.
  absl::Status Copy(Snapshot* out) const;

  // Constant after construction.
  MasterReplica* const replica_;
  Clock* const clock_;
  const size_t backlog_max_;

  mutable Mutex mu_;
  CondVar changed_;
  std::deque<std::shared_ptr<const CommitRecord>> queue_
      ABSL_GUARDED_BY(mu_);  // front: the next, or being applied
  uint64_t pushed_ ABSL_GUARDED_BY(mu_) =
      0;                                    // Invariant: all but the last queue_.size() are applied
  bool busy_ ABSL_GUARDED_BY(mu_) = false;  // somebody has the replica
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<Round> drop_x0_from_ ABSL_GUARDED_BY(mu_);
  LastStepsize stepsize_ ABSL_GUARDED_BY(mu_);
};

// Calls ApplyNext() whenever there is something to apply, behind the threads on whose work others
// wait.
//
// Ownership: does not own the applier, which must outlive it.
// Threads:   one internal thread; methods are thread-safe. on_applied runs on the internal thread.
class ApplierThread {
 public:
  struct Options {
    // For tests that show who waits for the applier: before each of the first `delayed` commits.
    Duration delay{};
    uint64_t delayed = UINT64_MAX;
    std::function<void(const Applied&)> on_applied;
    // Called before a commit behind which no other waits; returns when the commit's verdict has left
    // for the workers, or soon in any case. Null: nothing is waited for.
    std::function<void()> give_way;
  };

  ApplierThread(Applier* applier, Clock* clock, Options options);
  ~ApplierThread();

  // Ends the thread after the commit it is working on. Idempotent.
  void Stop();

 private:
  void Run();
  bool WaitBefore();  // false when stopped meanwhile
  bool stopping();

  // Constant after construction.
  Applier* const applier_;
  Clock* const clock_;
  const Options options_;

  Mutex mu_;
  CondVar stopped_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace signvote
