#pragma once
// What the server leaves of the model: copies while the run goes on (--export-every), and the model as
// it is when the run is over (--export), for which the server waits while it cannot be written.

#include <atomic>
#include <functional>
#include <optional>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/every.h"
#include "common/file_system.h"
#include "common/model_series.h"
#include "server/export_options.h"
#include "server/run/run_thread.h"
#include "server/stop_budget.h"

namespace signvote {

// Ownership: does not own what it is given, which must outlive it.
// Threads:   thread-compatible. Copies are taken and written on a thread of its own: the applier's
//            commits wait while one is taken, the run's thread never does (server/replica/applier.h).
// Failure:   what a disk does to a copy of the running model is told in the log, and the next one is
//            tried. Final() returns what the last attempt failed with.
class Exporter {
 public:
  Exporter(FileSystem* fs, Clock* clock, run::RunThread* run, ExportOptions options);

  // Looks whether a copy is due, and begins it. `asked`: one is wanted now.
  enum class Asked { kNo, kYes };
  void Look(Asked asked);

  // Writes the model as it is now that the run is over; no copy is waited for any more. After a stop
  // the applier has what `budget` leaves; a model whose applier is then still behind is written as of
  // the round that it has come to. While that fails, tries again at growing intervals, at once when
  // asked by `take_save`, until `linger` has passed or a stop is requested that was not at the
  // beginning; meanwhile the model can be had by `signvote export`. Of the budget, writing and the
  // time between attempts take nothing. Exit code kBadInput for a model that was not written.
  // FAILED_PRECONDITION, at once: no worker brought one.
  // REQUIRES: the run has ended.
  absl::Status Final(StopBudget* budget, const std::function<bool()>& take_save);

  // What Final() leaves of a budget for those behind it.
  static constexpr Duration kReserve = std::chrono::seconds(1);

 private:
  absl::Status WriteFinal(StopBudget* budget);

  FileSystem* const fs_;
  Clock* const clock_;
  run::RunThread* const run_;
  const ExportOptions options_;
  std::optional<EverySchedule> schedule_;  // once there are parameters
  std::atomic<bool> over_ = false;         // no further copy of the running model is wanted
  std::optional<ModelSeries> series_;      // unless there is no path
};

}  // namespace signvote
