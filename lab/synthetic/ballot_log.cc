#include "lab/synthetic/ballot_log.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/disk.h"
#include "common/status.h"

namespace signvote {
namespace {

struct HeldChunk {
  ChunkIndex index;
  std::shared_ptr<const uint8_t> bytes;
};

class RecordingSession final : public Session {
 public:
  RecordingSession(std::unique_ptr<Session> session, std::unique_ptr<DiskFile> file)
      : session_(std::move(session)), file_(std::move(file)) {}

  const std::string& name() const override { return session_->name(); }
  absl::StatusOr<RunInfo> Join(const ModelDescription& model) override {
    absl::StatusOr<RunInfo> run = session_->Join(model);
    if (run.ok()) plan_ = run->ballot_plan;
    return run;
  }
  absl::Status Attach(ReplicaMemory* replica) override { return session_->Attach(replica); }
  absl::StatusOr<std::optional<RoundTicket>> NextRound() override {
    held_.clear();
    SIGNVOTE_ASSIGN_OR_RETURN(ticket_, session_->NextRound());
    return ticket_;
  }
  absl::Status SendChunk(ChunkIndex k, std::shared_ptr<const uint8_t> ballot) override {
    held_.push_back({k, std::move(ballot)});
    return absl::OkStatus();
  }
  absl::Status SendScalars(const BallotScalars& scalars) override {
    SIGNVOTE_RETURN_IF_ERROR(Record(scalars));
    for (HeldChunk& chunk : std::exchange(held_, {}))
      SIGNVOTE_RETURN_IF_ERROR(session_->SendChunk(chunk.index, std::move(chunk.bytes)));
    return session_->SendScalars(scalars);
  }
  absl::Status Abstain(AbstainReason reason) override {
    held_.clear();
    return session_->Abstain(reason);
  }
  absl::StatusOr<CommitOutcome> WaitCommit() override { return session_->WaitCommit(); }
  absl::Status Leave(const std::string& reason) override { return session_->Leave(reason); }
  void RequestDrain(const std::string& reason) override { session_->RequestDrain(reason); }
  std::optional<Round> replica_round() const override { return session_->replica_round(); }
  std::string run_state() const override { return session_->run_state(); }
  bool finished() const override { return session_->finished(); }
  bool drained() const override { return session_->drained(); }
  SessionStats Stats() const override { return session_->Stats(); }

 private:
  absl::Status Record(const BallotScalars& scalars) {
    if (!ticket_.has_value()) return absl::FailedPreconditionError("no round is open");
    std::vector<std::string> chunks(plan_.chunks());
    for (const HeldChunk& chunk : held_) {
      chunks[chunk.index.value()] = absl::Base64Escape(
          {reinterpret_cast<const char*>(chunk.bytes.get()), plan_.Bytes(chunk.index, 1)});
    }
    const nlohmann::ordered_json line = {{"round", ticket_->round.value()},
                                         {"worker", session_->name()},
                                         {"incarnation", session_->Stats().incarnation},
                                         {"share", ticket_->share.value()},
                                         {"data_step", ticket_->data_step.value()},
                                         {"loss", scalars.loss},
                                         {"g_l1", scalars.g_l1},
                                         {"g_l2_squared", scalars.g_l2_squared},
                                         {"wanted", scalars.wanted},
                                         {"chunks", chunks}};
    const std::string text = line.dump() + "\n";
    SIGNVOTE_RETURN_IF_ERROR(
        file_->WriteAt(bytes_, std::as_bytes(std::span(text.data(), text.size()))));
    bytes_ += text.size();
    return file_->Sync();
  }

  const std::unique_ptr<Session> session_;
  const std::unique_ptr<DiskFile> file_;
  uint64_t bytes_ = 0;  // of the file
  PayloadPlan plan_;
  std::optional<RoundTicket> ticket_;
  std::vector<HeldChunk> held_;  // until the ballot is whole
};

}  // namespace

absl::StatusOr<std::unique_ptr<Session>> RecordBallots(std::unique_ptr<Session> session,
                                                       const std::string& folder,
                                                       const std::string& worker) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<Disk> disk, Disk::OpenPosix(folder));
  for (uint64_t n = 1;; ++n) {
    absl::StatusOr<std::unique_ptr<DiskFile>> file =
        disk->Create(absl::StrCat(worker, ".", n, ".ballots"), 0);
    if (absl::IsAlreadyExists(file.status())) continue;
    SIGNVOTE_RETURN_IF_ERROR(file.status());
    SIGNVOTE_RETURN_IF_ERROR(disk->SyncFolder());
    return std::make_unique<RecordingSession>(std::move(session), *std::move(file));
  }
}

}  // namespace signvote
