#pragma once
// The journal of a server: found, recovered, locked, and gone on with.

#include <functional>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/disk.h"
#include "common/file_lock.h"
#include "server/flags.h"
#include "server/http/server_metrics.h"
#include "server/journal/journal.h"
#include "server/journal/snapshotter.h"
#include "server/run/run_thread.h"

namespace signvote {

// Ownership: holds the folder's lock while it lives: nobody else writes there.
// Threads:   Show() by any thread.
class ServerJournal {
 public:
  using Begin = std::function<absl::Status(run::RunState* state)>;
  // Recovers what is there into `state`, whose run id is that of a run that is not there yet; the log
  // says what it took. Where no run has begun there `begin` may make it one that has: its status is
  // returned as it is. FAILED_PRECONDITION: another process has the folder; it has another run.
  // DATA_LOSS, and others as of journal::Recover(). `run`: how much of recent commits is kept.
  static absl::StatusOr<std::unique_ptr<ServerJournal>> Open(const JournalFlags& flags,
                                                             const run::RunOptions& run,
                                                             Clock* clock, const Begin& begin,
                                                             run::RunState* state);

  run::RunJournal parts() { return {.journal = journal_.get(), .snapshotter = snapshotter_.get()}; }
  // Into the metrics of a page.
  void Show(ServerMetrics* metrics) const;

 private:
  ServerJournal() = default;

  Clock* clock_ = nullptr;
  uint64_t recoveries_ = 0;  // of the run, this one included, as far as they are remembered
  double recovery_seconds_ = 0;
  std::unique_ptr<FileLock> lock_;
  std::unique_ptr<Disk> disk_;
  std::unique_ptr<journal::Journal> journal_;
  std::unique_ptr<journal::Snapshotter> snapshotter_;
};

}  // namespace signvote
