#pragma once
// A worker's session with a server in the same process: what worker/session does over gRPC, for a
// Voter or a Trainer, over calls. The product's Follower, VerdictAssembler, Replica and ReplicaMoves
// decide; nothing is dialled, broken or waited for in real time.
//
// Several sessions may share one replica, as virtual workers on one model do: the first that hears of a
// commit moves it, for all of them. Each must have handed its ballot over before any waits for the
// commit.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lab/local/local_server.h"
#include "worker/session/follower.h"
#include "worker/session/replica.h"
#include "worker/session/replica_moves.h"
#include "worker/session/session.h"
#include "worker/session/verdict_assembler.h"
#include "worker/session/verdict_store.h"

namespace signvote::lab {

// The replica of one or more sessions.
// Ownership: refers to the memory that is attached, which must outlive it.
// Threads:   one.
class SharedReplica {
 public:
  // The run's memory, said by each session; it is the same for all. INVALID_ARGUMENT: it is not, it has
  // not the layout's size, or cannot keep the x0 that the run needs.
  absl::Status Attach(const RunInfo& run, ReplicaMemory* memory);
  // What the server's replica holds, unless this one is level already.
  absl::Status Fetch(const MasterReplica& master);
  // This replica is what the run begins with: into the server's. Returns max |x_i|.
  absl::StatusOr<float> Upload(MasterReplica* master);
  // Moves it, unless another session has.
  absl::Status Apply(const CommitEvent& commit);
  // No commit from now on wants x0.
  void LetGoOfX0() { replica_->LetGoOfX0(); }  // REQUIRES: attached
  // As of round(); computed once for each.
  absl::StatusOr<uint64_t> Digest();

  // Every coordinate is there and holds all commits before round().
  bool level() const { return replica_ != nullptr && replica_->level(); }
  Round round() const { return replica_->round(); }  // REQUIRES: attached

 private:
  Layout layout_;
  ReplicaMemory* memory_ = nullptr;  // null: none is attached
  std::unique_ptr<Replica> replica_;
  struct Known {
    Round round;
    uint64_t digest = 0;
  };
  std::optional<Known> digest_;
};

// Ownership: server and replica must outlive it.
// Threads:   one, the server's.
// Failure:   what the server closes the stream with is what every later call returns. INTERNAL: the run
//            waits for something that cannot come.
class LocalSession final : public Session, private LocalEnd {
 public:
  LocalSession(LocalServer* server, SharedReplica* replica, std::string name);
  ~LocalSession() override;

  const std::string& name() const override { return name_; }
  absl::StatusOr<RunInfo> Join(const ModelDescription& model) override;
  absl::Status Attach(ReplicaMemory* replica) override;
  absl::StatusOr<std::optional<RoundTicket>> NextRound() override;
  absl::Status SendChunk(ChunkIndex k, std::shared_ptr<const uint8_t> ballot) override;
  absl::Status SendScalars(const BallotScalars& scalars) override;
  absl::Status Abstain(AbstainReason reason) override;
  absl::StatusOr<CommitOutcome> WaitCommit() override;
  absl::Status Leave(const std::string& reason) override;
  void RequestDrain(const std::string& reason) override;
  std::optional<Round> replica_round() const override;
  std::string run_state() const override { return ""; }
  bool finished() const override { return finished_; }
  bool drained() const override { return drained_; }
  // Only what a session in one process has: ballots, commits and transfers; no byte travels.
  SessionStats Stats() const override { return stats_; }

 private:
  // What has been handed over of the ballot of ticket_, for the votes to come.
  struct Ballot {
    std::vector<std::shared_ptr<const uint8_t>> chunks;  // null: not yet
    std::optional<v1::WorkerMessage> scalars, abstain;
  };

  // ---- LocalEnd
  void OnMessage(const v1::ServerMessage& message) override;
  void OnVerdict(Epoch epoch, const run::VerdictHeader& header,
                 std::span<const uint8_t> payload) override;
  void OnClosed(const absl::Status& status) override;

  absl::Status Read(const v1::ServerMessage& message);
  absl::Status Do(FollowerAction action, const v1::ServerMessage& message);
  absl::Status Transfer(const TransferAction& action);
  absl::Status ApplyArrived();
  absl::Status SayDigest();
  void HandOver(ChunkIndex k);
  void HandOver(const std::optional<v1::WorkerMessage>& message);
  // Has the run go on until `done` holds.
  absl::Status Until(const std::function<bool()>& done);

  // Constant after construction.
  LocalServer* const server_;
  SharedReplica* const replica_;
  const std::string name_;

  std::unique_ptr<Follower> follower_;  // null: Join() has not been called
  run::PeerId peer_;
  bool open_ = false;    // the stream is
  absl::Status status_;  // once the stream was closed, or something of it cannot be followed
  std::unique_ptr<VerdictStore> store_;
  std::unique_ptr<VerdictAssembler> assembler_;  // null: the run is not known
  ReplicaMoves moves_;
  bool attached_ = false;
  // Commits that this session has told of, which may be fewer than its replica holds.
  Round round_;
  std::deque<CommitEvent> arrived_;
  std::optional<TransferAction> transfer_;
  std::optional<OpenedAction> opened_;
  std::optional<RoundTicket> ticket_;
  Ballot ballot_;
  std::optional<Round> finish_rounds_;
  std::optional<std::string> drain_reason_;
  bool finished_ = false, drained_ = false;
  SessionStats stats_;
};

}  // namespace signvote::lab
