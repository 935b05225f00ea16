#include "server/exporter.h"

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/export_metadata.h"
#include "common/hold.h"
#include "common/log.h"
#include "common/model_file.h"
#include "common/status.h"

namespace signvote {
namespace {

// Of a stop, for the commit that the applier is at before the model is copied as it stands.
constexpr Duration kCopyShare = std::chrono::seconds(1);
// A copy begins behind the commit that the applier is at.
constexpr Duration kCopyPatience = std::chrono::seconds(30);

}  // namespace

Exporter::Exporter(FileSystem* fs, Clock* clock, run::RunThread* run, ExportOptions options)
    : fs_(fs), clock_(clock), run_(run), options_(std::move(options)) {
  if (!options_.path.empty()) {
    series_.emplace(fs_,
                    ModelSeries::Options{
                        .path = options_.path, .keep = options_.keep, .format = options_.format});
  }
}

void Exporter::Look(Asked asked) {
  if (!series_.has_value()) {
    if (asked == Asked::kYes) {
      LogWarning(
          "asked for a copy of the model, but no --export says where to; `signvote export` "
          "writes one");
    }
    return;
  }
  const std::optional<Round> committed = run_->committed();
  if (!committed.has_value()) {
    if (asked == Asked::kYes) LogWarning("asked for a copy of the model: there is none yet");
    return;
  }
  if (!schedule_.has_value()) schedule_.emplace(options_.every, *committed, clock_->Now());
  const bool due = schedule_->Due(*committed, clock_->Now());
  if (!due && asked == Asked::kNo) return;
  if (series_->busy()) return series_->TellBusy();
  series_->Write([run = run_, over = &over_]() -> absl::StatusOr<ModelCopy> {
    SIGNVOTE_ASSIGN_OR_RETURN(run::RunThread::Exported copy,
                              run->CopyReplica(run::RunThread::CopyOf::kCommitted, kCopyPatience,
                                               [over] { return over->load(); }));
    std::map<std::string, std::string> metadata = ExportMetadata(copy.origin);
    return ModelCopy{.layout = std::move(copy.layout),
                     .round = copy.origin.round,
                     .x = std::move(copy.x),
                     .metadata = std::move(metadata),
                     .config_json = std::move(copy.config_json)};
  });
}

absl::Status Exporter::WriteFinal(StopBudget* budget) {
  const auto give_up = [budget] {
    return budget->Share(Duration::max(), kCopyShare + kReserve) == Duration::zero();
  };
  const absl::StatusOr<run::RunThread::Final> final = run_->FinalReplica(give_up);
  if (final.ok()) {
    const StopBudget::Pause writing(budget);
    return WriteModel(fs_, options_.path, options_.format, final->replica->layout(),
                      final->replica->x(), ExportMetadata(final->origin), final->config_json);
  }
  if (!absl::IsCancelled(final.status())) return WithContext(final.status(), options_.path);
  absl::StatusOr<run::RunThread::Exported> copied =
      run_->CopyReplica(run::RunThread::CopyOf::kApplied, budget->Share(kCopyShare, kReserve));
  // A hung commit may end while the model is held, as a full disk may be mended.
  if (!copied.ok()) return WithExitCode(copied.status(), ExitCode::kBadInput);
  const run::RunThread::Exported copy = *std::move(copied);
  LogWarning("the model is written as of an earlier round: the master replica was behind",
             {{"round", copy.origin.round.value()}});
  const StopBudget::Pause writing(budget);
  return WriteModel(fs_, options_.path, options_.format, copy.layout, copy.x,
                    ExportMetadata(copy.origin), copy.config_json);
}

absl::Status Exporter::Final(StopBudget* budget, const std::function<bool()>& take_save) {
  if (!series_.has_value()) return absl::OkStatus();
  over_ = true;
  run_->AskCopiesAgain();
  {
    const StopBudget::Pause writing(budget);
    series_->Finish();
  }
  // Nothing that could be lost.
  if (!run_->committed().has_value()) return WriteFinal(budget);
  std::optional<StopBudget::Pause> held;  // between two attempts
  absl::Status status = WriteOrHold(
      clock_,
      {.what = "the model is not written",
       .remedy =
           "free the disk, or save it elsewhere with `signvote export PATH`, then stop the server",
       .linger = options_.linger,
       .stop_requested = [budget] { return budget->Begun(); },
       .take_save = take_save},
      [&] {
        held.reset();
        absl::Status written = WriteFinal(budget);
        held.emplace(budget);
        return written;
      });
  status = WithExitCode(std::move(status), ExitCode::kBadInput);
  if (status.ok()) LogInfo("the model is written", {{"path", options_.path}});
  return status;
}

}  // namespace signvote
