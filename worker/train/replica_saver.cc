#include "worker/train/replica_saver.h"

#include <map>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/checksum.h"
#include "common/export_metadata.h"
#include "common/log.h"
#include "common/memory_reserve.h"
#include "common/model_file.h"
#include "common/status.h"

namespace signvote {
namespace {

std::map<std::string, std::string> Metadata(const ExportOrigin& origin, uint64_t digest) {
  std::map<std::string, std::string> metadata = ExportMetadata(origin);
  metadata["signvote.digest"] = absl::StrFormat("%016x", digest);
  return metadata;
}

}  // namespace

ReplicaSaver::ReplicaSaver(FileSystem* fs, Clock* clock, Options options)
    : fs_(fs), clock_(clock), options_(std::move(options)) {
  if (!options_.path.empty()) {
    series_.emplace(fs_,
                    ModelSeries::Options{
                        .path = options_.path, .keep = options_.keep, .format = options_.format});
  }
}

ExportOrigin ReplicaSaver::Origin(const RunInfo& run, Round round) const {
  return {.run_id = run.run_id, .round = round, .rule = run.rule, .stepsize = stepsize_.value()};
}

void ReplicaSaver::Begin(Round round) { schedule_.emplace(options_.every, round, clock_->Now()); }

absl::Status ReplicaSaver::AfterRound(const RunInfo& run, ReplicaMemory* replica, Round round,
                                      Asked asked) {
  if (asked == Asked::kYes && !series_.has_value()) {
    LogWarning("asked for a copy of the replica, but no --save says where to");
  }
  if (!series_.has_value()) return absl::OkStatus();
  const bool due = schedule_->Due(round, clock_->Now());
  if (!due && asked == Asked::kNo) return absl::OkStatus();
  if (series_->busy()) {
    series_->TellBusy();
    return absl::OkStatus();
  }
  ModelCopy copy{.layout = run.layout, .round = round, .config_json = options_.config_json};
  if (const absl::Status room = TryResize(&copy.x, replica->coordinates()); !room.ok()) {
    LogError("a copy of the model is not written; the next one is tried when it is due",
             {{"error", Describe(room)}});
    return absl::OkStatus();
  }
  SIGNVOTE_RETURN_IF_ERROR(replica->Read(0, copy.x));
  series_->Write(
      [origin = Origin(run, round), copy = std::move(copy)]() mutable -> absl::StatusOr<ModelCopy> {
        copy.metadata = Metadata(origin, ReplicaDigest(copy.x.data(), 0, copy.x.size()));
        return std::move(copy);
      });
  return absl::OkStatus();
}

void ReplicaSaver::BeforeTransfer(const RunInfo& run, ReplicaMemory* replica, Round round) {
  if (!series_.has_value()) return;
  absl::Status saved;
  if (const absl::StatusOr<uint64_t> digest = replica->Digest(); digest.ok()) {
    saved = Final(run, replica, round, *digest);
  } else {
    saved = digest.status();
  }
  if (saved.ok()) {
    before_transfer_ = round;
    LogInfo("the replica is saved before another state takes its place",
            {{"path", options_.path}, {"round", round.value()}});
    return;
  }
  LogError("the replica cannot be saved before another state takes its place",
           {{"path", options_.path}, {"round", round.value()}, {"error", Describe(saved)}});
}

absl::Status ReplicaSaver::Final(const RunInfo& run, ReplicaMemory* replica, Round round,
                                 uint64_t digest) {
  if (!series_.has_value()) return absl::OkStatus();
  series_->Finish();
  const auto read = [replica](uint64_t first, std::span<float> values) {
    return replica->Read(first, values);
  };
  return WriteModel(fs_, options_.path, options_.format, run.layout, ReadValues(read),
                    Metadata(Origin(run, round), digest), options_.config_json);
}

}  // namespace signvote
