#include "worker/train/replica_saver.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/checksum.h"
#include "common/export_metadata.h"
#include "common/log.h"
#include "common/memory_reserve.h"
#include "common/model_file.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr uint64_t kPieceCoordinates = 64 * kReplicaDigestBlock;

absl::StatusOr<uint64_t> DigestOf(const ReadValues& read, uint64_t coordinates) {
  std::vector<float> piece(std::min(kPieceCoordinates, coordinates));
  uint64_t digest = 0;
  for (uint64_t first = 0; first < coordinates; first += piece.size()) {
    const uint64_t count = std::min<uint64_t>(piece.size(), coordinates - first);
    SIGNVOTE_RETURN_IF_ERROR(read(first, std::span(piece).first(count)));
    digest += ReplicaDigest(piece.data(), first, count);
  }
  return digest;
}

// The file says of its run what `saved` does, if anything.
void AddRun(std::optional<SavedRun> saved, uint64_t digest, const std::string& path,
            std::optional<uint64_t> x0_digest, std::map<std::string, std::string>* metadata) {
  (*metadata)[kDigestKey] = absl::StrFormat("%016x", digest);
  if (!saved.has_value()) return;
  saved->digest = digest;
  if (x0_digest.has_value()) {
    saved->x0 = {.file = std::filesystem::path(X0PathOf(path)).filename(), .digest = *x0_digest};
  }
  AddSavedRun(*saved, metadata);
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

std::map<std::string, std::string> ReplicaSaver::Metadata(const RunInfo& run, Round round) const {
  return ExportMetadata(
      {.run_id = run.run_id, .round = round, .rule = run.rule, .stepsize = stepsize_.value()});
}

std::optional<SavedRun> ReplicaSaver::RunOf(const RunInfo& run, Round round) const {
  // Rounded numbers are no replica of the run.
  if (options_.run_state == nullptr || options_.format.dtype != TensorDtype::kF32 ||
      run.run_head.empty())
    return std::nullopt;
  SavedRun saved{.head = run.run_head, .after = options_.run_state(), .run_id = run.run_id};
  saved.round = round;
  return saved.after.empty() ? std::nullopt : std::optional(std::move(saved));
}

absl::Status ReplicaSaver::WriteX0(const RunInfo& run,
                                   const std::map<std::string, std::string>& metadata,
                                   const ReadValues& read) {
  if (x0_digest_.has_value()) return absl::OkStatus();
  SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t digest, DigestOf(read, run.layout.coordinates()));
  SIGNVOTE_RETURN_IF_ERROR(
      WithContext(WriteModel(fs_, X0PathOf(options_.path), options_.format, run.layout, read,
                             metadata, /*config_json=*/""),
                  "the parameters that the run started with, without which it cannot go on"));
  x0_digest_ = digest;
  return absl::OkStatus();
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
  copy.metadata = Metadata(run, round);
  std::optional<SavedRun> saved = RunOf(run, round);
  const bool with_x0 = saved.has_value() && replica->keeps_x0();
  std::vector<float> x0;
  if (with_x0 && !x0_digest_.has_value()) {
    if (const absl::Status room = TryResize(&x0, replica->coordinates()); room.ok()) {
      SIGNVOTE_RETURN_IF_ERROR(replica->ReadX0(0, x0));
    } else {
      LogError("a copy of the model is written without its run", {{"error", Describe(room)}});
      saved.reset();
    }
  }
  series_->Write([this, run, with_x0, saved = std::move(saved), x0 = std::move(x0),
                  copy = std::move(copy)]() mutable -> absl::StatusOr<ModelCopy> {
    if (!x0.empty()) {
      const absl::Status written =
          WriteX0(run, copy.metadata, [&x0](uint64_t first, std::span<float> values) {
            std::copy_n(x0.begin() + static_cast<int64_t>(first), values.size(), values.begin());
            return absl::OkStatus();
          });
      if (!written.ok()) {
        LogError("a copy of the model is written without its run", {{"error", Describe(written)}});
        saved.reset();
      }
    }
    const uint64_t digest = ReplicaDigest(copy.x.data(), 0, copy.x.size());
    AddRun(std::move(saved), digest, options_.path, with_x0 ? x0_digest_ : std::nullopt,
           &copy.metadata);
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
  std::map<std::string, std::string> metadata = Metadata(run, round);
  std::optional<SavedRun> saved = RunOf(run, round);
  const bool with_x0 = saved.has_value() && replica->keeps_x0();
  if (with_x0) {
    const absl::Status written =
        WriteX0(run, metadata, [replica](uint64_t first, std::span<float> values) {
          return replica->ReadX0(first, values);
        });
    if (!written.ok()) {
      LogError("the replica is saved without its run", {{"error", Describe(written)}});
      saved.reset();
    }
  }
  AddRun(std::move(saved), digest, options_.path, with_x0 ? x0_digest_ : std::nullopt, &metadata);
  return WriteModel(fs_, options_.path, options_.format, run.layout, ReadValues(read), metadata,
                    options_.config_json);
}

}  // namespace signvote
