#pragma once
// results.csv: one line for each run that is done, appended as it ends, so that whatever stops a sweep
// costs only the runs that were under way. docs/lab.md, "results.csv".

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "lab/local/virtual_workers.h"
#include "lab/sweep/plan.h"
#include "lab/sweep/spec.h"

namespace signvote::lab {

// What became of a run. All but the first count as an infinite loss.
enum class CellOutcome {
  kFinished,
  kDiverged,    // no worker's loss, or the held-out one, is finite any more
  kNoStepsize,  // the rule found none
};
// Of a run that ended with this status, its server with `run_end`, at this held-out loss. nullopt: it
// failed for a reason that is no result.
std::optional<CellOutcome> OutcomeOf(const absl::Status& ended, const absl::Status& run_end,
                                     const std::optional<HeldOutLoss>& held_out);
// The column `outcome`: "finished", "diverged", "no_stepsize".
std::string_view OutcomeWord(CellOutcome outcome);

// The first line, and what each run's line says.
std::string ResultsHead();  // without its newline
std::string ResultsLine(const SweepSpec& spec, const SweepCell& cell, const LocalReport& report,
                        float last_stepsize, CellOutcome outcome);

// The losses in a file's text. A last line that was cut short is passed over; INVALID_ARGUMENT with exit
// code kBadInput: another line has not the columns of ResultsHead(), or no loss; or the first one is
// neither ResultsHead() nor, cut short, its beginning.
absl::StatusOr<LossesById> ReadLosses(std::string_view text, const std::string& path);

// cells.csv: the runs that the file asks for, as far as they are known, done or not. results.csv may have
// those of earlier files too.
std::string CellsCsv(const SweepSpec& spec, const std::vector<SweepCell>& cells);

// The losses in a file; none where there is no file yet. Failure as ReadLosses(), or the file's.
absl::StatusOr<LossesById> ReadResults(FileSystem* fs, const std::string& path);

// Appends lines. Threads: not thread-safe. Durability: as LogFile.
class ResultsFile {
 public:
  // Reads what is there, if anything is. Failure as ReadLosses(), or the file's.
  static absl::StatusOr<std::unique_ptr<ResultsFile>> Open(FileSystem* fs, const std::string& path);

  absl::Status Append(const std::string& line) { return file_->Append(line + "\n"); }
  const LossesById& losses() const { return losses_; }
  LossesById* mutable_losses() { return &losses_; }

 private:
  std::unique_ptr<LogFile> file_;
  LossesById losses_;
};

}  // namespace signvote::lab
