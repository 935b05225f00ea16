#include "lab/sweep/results.h"

#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote::lab {
namespace {

constexpr uint64_t kResultsBytesMax = uint64_t{1} << 30;
constexpr uint32_t kFileMode = 0644;

constexpr std::string_view kColumns[] = {
    "task",           "direction",   "rule",          "aggregate",
    "local_steps",    "n",           "stepsize",      "seed",
    "rounds",         "main_rounds", "held_out_loss", "held_out_error",
    "held_out_first", "seconds",     "bytes_up",      "bytes_down",
    "minibatches",    "up_bits",     "down_bits",     "targets",
    "last_stepsize",  "outcome",     "digest",        "id",
    "program"};
constexpr size_t kLossColumn = 10;
static_assert(kColumns[kLossColumn] == "held_out_loss");
constexpr size_t kIdColumn = 23;
static_assert(kColumns[kIdColumn] == "id");

std::string StepsizeText(const SweepCell& cell) {
  return cell.stepsize.has_value() ? absl::StrFormat("%.6g", *cell.stepsize) : "";
}

// Per parameter and minibatch, of all workers together; 0: there was no minibatch.
double Bits(const LocalReport& report, uint64_t bytes) {
  const double parts = static_cast<double>(report.minibatches) *
                       static_cast<double>(report.run.layout.coordinates());
  return parts > 0 ? 8 * static_cast<double>(bytes) / parts : 0;
}

absl::Status NoResults(const std::string& path, size_t line) {
  return WithExitCode(absl::InvalidArgumentError(absl::StrCat(
                          path, ": line ", line, " is none of results.csv; give another --output")),
                      ExitCode::kBadInput);
}

}  // namespace

std::optional<CellOutcome> OutcomeOf(const absl::Status& ended, const absl::Status& run_end,
                                     const std::optional<HeldOutLoss>& held_out) {
  if (ended.ok()) {
    // A replica that is finite may have a loss that is not.
    const bool finite = held_out.has_value() && std::isfinite(held_out->loss);
    return finite ? CellOutcome::kFinished : CellOutcome::kDiverged;
  }
  if (ExitCodeFor(run_end) == ExitCode::kDiverged) return CellOutcome::kDiverged;
  if (absl::IsFailedPrecondition(run_end)) return CellOutcome::kNoStepsize;
  return std::nullopt;
}

std::string_view OutcomeWord(CellOutcome outcome) {
  switch (outcome) {
    case CellOutcome::kFinished:
      return "finished";
    case CellOutcome::kDiverged:
      return "diverged";
    case CellOutcome::kNoStepsize:
      break;
  }
  return "no_stepsize";
}

std::string ResultsHead() {
  std::string head;
  for (const std::string_view column : kColumns)
    absl::StrAppend(&head, head.empty() ? "" : ",", std::string(column));
  return head;
}

std::string ResultsLine(const SweepSpec& spec, const SweepCell& cell, const LocalReport& report,
                        float last_stepsize, CellOutcome outcome) {
  const CellGroup& group = spec.groups[cell.group];
  const double infinite = std::numeric_limits<double>::infinity();
  const std::optional<HeldOutLoss>& last = report.held_out_last;
  const bool good = outcome == CellOutcome::kFinished;
  return absl::StrFormat(
      "%s,%s,%s,%s,%s,%d,%s,%d,%d,%d,%.9g,%.4g,%.9g,%.3f,%d,%d,%d,%.5g,%.5g,%d,%.9g,%s,%016x,%s,%s",
      group.task, group.direction, group.rule, group.aggregate, group.local_steps, group.workers,
      StepsizeText(cell), cell.seed, report.rounds, report.main_rounds,
      good ? last->loss : infinite, good ? last->error : 0.0,
      report.held_out_first.has_value() ? report.held_out_first->loss : infinite, report.seconds,
      report.bytes_up, report.bytes_down, report.minibatches, Bits(report, report.bytes_up),
      Bits(report, report.bytes_down), report.targets, static_cast<double>(last_stepsize),
      OutcomeWord(outcome), report.digest.value_or(0), cell.id, spec.program);
}

absl::StatusOr<LossesById> ReadLosses(std::string_view text, const std::string& path) {
  LossesById losses;
  std::vector<std::string> lines = absl::StrSplit(std::string(text), '\n');
  // Behind the last newline is nothing, or a line that was cut short.
  if (lines.size() == 1 && !ResultsHead().starts_with(lines.front())) return NoResults(path, 1);
  lines.pop_back();
  for (size_t k = 0; k < lines.size(); ++k) {
    if (k == 0 && lines[k] == ResultsHead()) continue;
    const std::vector<std::string> fields = absl::StrSplit(lines[k], ',');
    double loss = 0;
    if (k == 0 || fields.size() != std::size(kColumns) ||
        !absl::SimpleAtod(fields[kLossColumn], &loss) || std::isnan(loss))
      return NoResults(path, k + 1);
    losses[fields[kIdColumn]] = loss;
  }
  return losses;
}

std::string CellsCsv(const SweepSpec& spec, const std::vector<SweepCell>& cells) {
  std::string text = "id,task,direction,rule,aggregate,local_steps,n,stepsize,seed,tuned\n";
  for (const SweepCell& cell : cells) {
    const CellGroup& group = spec.groups[cell.group];
    absl::StrAppend(&text, cell.id, ",", group.task, ",", group.direction, ",", group.rule, ",",
                    group.aggregate, ",", group.local_steps, ",", group.workers, ",",
                    StepsizeText(cell), ",", cell.seed, ",", group.grid.has_value() ? 1 : 0, "\n");
  }
  return text;
}

absl::StatusOr<LossesById> ReadResults(FileSystem* fs, const std::string& path) {
  const absl::StatusOr<std::string> text = fs->ReadFile(path, kResultsBytesMax);
  if (absl::IsNotFound(text.status())) return LossesById();
  SIGNVOTE_RETURN_IF_ERROR(text.status());
  return ReadLosses(*text, path);
}

absl::StatusOr<std::unique_ptr<ResultsFile>> ResultsFile::Open(FileSystem* fs,
                                                               const std::string& path) {
  auto results = std::make_unique<ResultsFile>();
  const absl::StatusOr<std::string> text = fs->ReadFile(path, kResultsBytesMax);
  if (!text.ok() && !absl::IsNotFound(text.status())) return text.status();
  if (text.ok() && !text->empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(results->losses_, ReadLosses(*text, path));
    if (!text->ends_with('\n')) {
      // Its whole lines take its place.
      SIGNVOTE_RETURN_IF_ERROR(
          WriteFileAtomically(fs, path, text->substr(0, text->rfind('\n') + 1), kFileMode));
    }
  }
  SIGNVOTE_ASSIGN_OR_RETURN(results->file_, fs->OpenLog(path, kFileMode));
  if (!text.ok() || text->find('\n') == std::string::npos)
    SIGNVOTE_RETURN_IF_ERROR(results->Append(ResultsHead()));
  return results;
}

}  // namespace signvote::lab
