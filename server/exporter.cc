#include "server/exporter.h"

#include <map>
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

// What a stop leaves the applier to catch up in before the model is written as it stands.
constexpr Duration kApplierGrace = std::chrono::seconds(3);
// A copy begins behind the commit that the applier is at.
constexpr Duration kCopyPatience = std::chrono::seconds(30);

}  // namespace

Exporter::Exporter(FileSystem* fs, Clock* clock, run::RunThread* run, ExportOptions options)
    : fs_(fs), clock_(clock), run_(run), options_(std::move(options)) {
  if (!options_.path.empty()) {
    series_.emplace(fs_, ModelSeries::Options{.path = options_.path, .keep = options_.keep});
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
  series_->Write([run = run_]() -> absl::StatusOr<ModelCopy> {
    SIGNVOTE_ASSIGN_OR_RETURN(run::RunThread::Exported copy, run->CopyReplica(kCopyPatience));
    std::map<std::string, std::string> metadata = ExportMetadata(run->run_id(), copy.round);
    return ModelCopy{.layout = std::move(copy.layout),
                     .round = copy.round,
                     .x = std::move(copy.x),
                     .metadata = std::move(metadata),
                     .config_json = std::move(copy.config_json)};
  });
}

absl::Status Exporter::WriteFinal(const std::function<bool()>& stop_requested) {
  std::optional<Time> give_up_at;
  const auto give_up = [&] {
    if (!give_up_at.has_value() && stop_requested()) give_up_at = clock_->Now() + kApplierGrace;
    return give_up_at.has_value() && clock_->Now() >= *give_up_at;
  };
  const absl::StatusOr<run::RunThread::Final> final = run_->FinalReplica(give_up);
  if (final.ok()) {
    return WriteModel(fs_, options_.path, final->replica->layout(), final->replica->x(),
                      ExportMetadata(run_->run_id(), final->round), final->config_json);
  }
  if (!absl::IsCancelled(final.status())) return WithContext(final.status(), options_.path);
  SIGNVOTE_ASSIGN_OR_RETURN(const run::RunThread::Exported copy, run_->CopyReplica(kApplierGrace));
  LogWarning("the model is written as of an earlier round: the master replica was behind",
             {{"round", copy.round.value()}});
  return WriteModel(fs_, options_.path, copy.layout, copy.x,
                    ExportMetadata(run_->run_id(), copy.round), copy.config_json);
}

absl::Status Exporter::Final(const std::function<bool()>& stop_requested,
                             const std::function<bool()>& take_save) {
  if (!series_.has_value()) return absl::OkStatus();
  series_->Finish();
  // Nothing that could be lost.
  if (!run_->committed().has_value()) return WriteFinal(stop_requested);
  absl::Status status = WriteOrHold(
      clock_,
      {.what = "the model is not written",
       .remedy =
           "free the disk, or save it elsewhere with `signvote export PATH`, then stop the server",
       .linger = options_.linger,
       .stop_requested = stop_requested,
       .take_save = take_save},
      [&] { return WithExitCode(WriteFinal(stop_requested), ExitCode::kBadInput); });
  if (status.ok()) LogInfo("the model is written", {{"path", options_.path}});
  return status;
}

}  // namespace signvote
