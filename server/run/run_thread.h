#pragma once
// The thread that drives a run, with what the run leaves to others: tallies, the applier, and those
// who want to know.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/export_metadata.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "server/journal/journal.h"
#include "server/journal/snapshotter.h"
#include "server/replica/applier.h"
#include "server/run/inbox.h"
#include "server/run/inputs.h"
#include "server/run/outbound.h"
#include "server/run/run.h"

namespace signvote::run {

// Both or neither; they must outlive the thread.
struct RunJournal {
  journal::Journal* journal = nullptr;
  journal::Snapshotter* snapshotter = nullptr;
};

struct RunThreadOptions {
  RunOptions run;
  RunState state;      // where the run stands; with a run id
  RunJournal journal;  // null: durability `none`, without a trace on a disk
  size_t tally_threads = 1;
  Duration test_applier_delay{};  // before each of the first `test_applier_delayed` commits
  uint64_t test_applier_delayed = UINT64_MAX;
};

// Ownership:  owns the run, its tally threads and its applier. Of `parts` it fills in clock, host, tally
//             and durability; what the others point to must outlive it.
// Threads:    Start() begins one thread; public methods are thread-safe. What runs on that thread may
//             wait for nothing: builds for tests abort when it does (common/may_wait.h).
// Failure:    what makes the run impossible is end_status().
class RunThread final : private RunHost {
 public:
  // As Run::Create().
  static absl::StatusOr<std::unique_ptr<RunThread>> Create(RunThreadOptions options, RunParts parts,
                                                           Clock* clock);
  ~RunThread() override;

  void Start();
  // Ends the thread, then the journal's. Idempotent. Calls that are still posted run first.
  void Stop();

  // False: the thread has been stopped, it will not be looked at.
  [[nodiscard]] bool Post(Input input);
  // Runs `call` on the thread. False: likewise.
  using RunCall = std::function<void(Run& run, Time now)>;
  [[nodiscard]] bool Call(RunCall call);

  // The operator's stop: the open round may complete.
  void RequestStop();
  // True once the run has ended; false after `timeout`.
  bool WaitUntilEnded(Duration timeout);
  // OK: finished, or stopped by the operator. REQUIRES: ended.
  absl::Status end_status() const;
  // Closes every stream, after what is queued for it when all is well, and returns when they are gone
  // or after `timeout`.
  void CloseStreams(Duration timeout);

  // DEADLINE_EXCEEDED when the thread does not answer in time. Not for the thread itself.
  absl::StatusOr<Health> HealthNow(Duration timeout);
  absl::StatusOr<StatusPage> Snapshot(Duration timeout);

  // A copy of the master replica at one round, with what belongs to it. kCommitted: with every commit
  // that was there when it was asked for, unless the applier does not come to them within some seconds.
  // FAILED_PRECONDITION: no parameters yet. DEADLINE_EXCEEDED: the applier was busy all of `timeout`.
  // CANCELLED: `give_up` said so (as in Applier::TakeSnapshot()), or EndCopies(). Takes as long as the
  // copy: for a thread of its own.
  enum class CopyOf { kCommitted, kApplied };
  struct Exported {
    Layout layout;
    ExportOrigin origin;
    std::vector<float> x;
    std::string config_json;
  };
  absl::StatusOr<Exported> CopyReplica(CopyOf what, Duration timeout,
                                       const std::function<bool()>& give_up = {});
  // Those who wait in CopyReplica() ask their `give_up` again.
  void AskCopiesAgain();
  // Nobody waits in CopyReplica() any more, now and later.
  void EndCopies();
  // The master replica itself, with every commit: nobody moves it any more. Waits for the applier, a
  // line in the log now and then. FAILED_PRECONDITION: no parameters. CANCELLED: `give_up` said so,
  // which is asked ten times a second. REQUIRES: ended.
  struct Final {
    std::shared_ptr<const MasterReplica> replica;
    ExportOrigin origin;
    std::string config_json;
  };
  absl::StatusOr<Final> FinalReplica(const std::function<bool()>& give_up);

  // Rounds committed so far; nullopt: there are no parameters yet.
  std::optional<Round> committed() const;

  // Where sessions say what they have queued.
  Outbound* outbound() { return &outbound_; }

  const RunId& run_id() const { return origin_.run_id; }
  Epoch epoch() const { return epoch_; }

 private:
  using Item = std::variant<Input, RunCall>;

  // What others may know at any time.
  struct Public {
    bool ended = false;
    absl::Status end_status;
    size_t streams = 0;
    Round committed;
    std::string config_json;
    std::shared_ptr<MasterReplica> replica;  // null: no parameters yet
  };

  RunThread(const RunThreadOptions& options, Clock* clock);
  CommitConsumer* StartApplier(const std::shared_ptr<MasterReplica>& replica,
                               size_t backlog_max) override;
  void DropX0From(Round round) override;
  void LoadInitial(std::unique_ptr<InitialParameters> init,
                   std::shared_ptr<MasterReplica> replica) override;
  ExportOrigin OriginAt(Round round, std::optional<float> stepsize) const;
  template <typename T>
  absl::StatusOr<T> Ask(Duration timeout, std::function<T(Run& run, Time now)> question);
  void Loop();
  void Tell();

  // Constant after Create().
  Clock* const clock_;
  const Epoch epoch_;
  const ApplierThread::Options applier_options_;
  const RunJournal journal_;
  ExportOrigin origin_;  // with the stepsize that the run goes on from

  // Own synchronisation.
  Inbox<Item> inbox_;
  Outbound outbound_;
  TallyThreads tally_;

  mutable Mutex mu_;
  CondVar changed_;
  Public public_ ABSL_GUARDED_BY(mu_);
  // Set once, with Public::replica, and alive as long as this object.
  std::unique_ptr<Applier> applier_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<ApplierThread> applier_thread_ ABSL_GUARDED_BY(mu_);

  std::unique_ptr<Run> run_;  // the thread's, while it runs
  std::thread thread_;
  std::thread loader_;  // begun by thread_, at most once
  std::atomic<bool> stopping_ = false, copies_ended_ = false;
};

}  // namespace signvote::run
