#include "server/exporter.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/export_metadata.h"
#include "common/log.h"
#include "common/model_file.h"
#include "common/status.h"

namespace signvote {
namespace {

// Of a stop, for the commit that the applier is at before the model is copied as it stands.
constexpr Duration kCopyShare = std::chrono::seconds(1);
// A copy begins behind the commit that the applier is at.
constexpr Duration kCopyPatience = std::chrono::seconds(30);
constexpr Duration kLookEvery = std::chrono::milliseconds(100);
constexpr Duration kAgainFirst = std::chrono::seconds(5);
constexpr Duration kAgainLongest = std::chrono::seconds(60);

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
                              run->CopyReplica(kCopyPatience, [over] { return over->load(); }));
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
  SIGNVOTE_ASSIGN_OR_RETURN(const run::RunThread::Exported copy,
                            run_->CopyReplica(budget->Share(kCopyShare, kReserve)));
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
  const bool stopped_before = budget->Begun();
  const Time until = clock_->Now() + options_.linger;
  Duration again = kAgainFirst;
  while (true) {
    absl::Status status = WriteFinal(budget);
    if (status.ok()) {
      LogInfo("the model is written", {{"path", options_.path}});
      return status;
    }
    if (!run_->committed().has_value()) return status;  // nothing that could be lost
    status = WithExitCode(std::move(status), ExitCode::kBadInput);
    const Time now = clock_->Now();
    const bool asked_to_end = !stopped_before && budget->Begun();
    if (now >= until || asked_to_end) return status;
    const Time next = std::min(until, now + again);
    again = std::min(again * 2, kAgainLongest);
    LogError(
        "the model is not written: the server holds it and tries again; free the disk, or save it "
        "elsewhere with `signvote export PATH`, then stop the server",
        {{"error", Describe(status)},
         {"held_for_seconds", ToSeconds(until - now)},
         {"again_in_seconds", ToSeconds(next - now)}});
    while (clock_->Now() < next && !take_save() && (stopped_before || !budget->Begun())) {
      const StopBudget::Pause held(budget);
      clock_->SleepFor(std::min<Duration>(kLookEvery, next - clock_->Now()));
    }
  }
}

}  // namespace signvote
