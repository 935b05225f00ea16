#pragma once
// One worker process of a simulated run: the product's Follower, VerdictAssembler, CatchUp, Replica,
// RetryPolicy, BallotPacker and LocalStepSource, and around them what a process adds: dialling,
// gradients, time, faults.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/server_host.h"
#include "tests/sim/world.h"
#include "worker/codec/replica_memory.h"
#include "worker/direction/worker_device.h"
#include "worker/session/catch_up.h"
#include "worker/session/follower.h"
#include "worker/session/replica.h"
#include "worker/session/retry_policy.h"
#include "worker/session/verdict_assembler.h"
#include "worker/session/verdict_store.h"
#include "worker/vote/local_steps.h"

namespace signvote::sim {

class SimWorker final : public HostEnd, public CallEnd {
 public:
  SimWorker(World* world, ServerHost* server, size_t host);
  ~SimWorker() override;

  // ---- the process
  void Start();
  void Crash(double seconds_down);  // loses everything; starts again after that time
  void Hang(double seconds);
  bool up() const { return up_; }
  // Not to be started again: evicted.
  bool out() const { return out_; }
  bool finished() const { return finished_; }
  const std::string& name() const { return name_; }
  std::optional<ConnectionId> connection() const { return connection_; }
  bool welcomed() const { return follower_ != nullptr && follower_->welcomed(); }
  bool fetching() const { return call_ != 0; }
  std::optional<Round> round() const;
  bool damaged() const { return damaged_; }

  // ---- what the faults ask for; times are how long it lasts
  void SlowDown(double seconds) { slow_until_ = Until(seconds); }
  void DelayOneChunk(double seconds) { late_chunk_until_ = Until(seconds); }
  void KeepScalars(double seconds) { no_scalars_until_ = Until(seconds); }
  void LieInScalars(double seconds) { lying_scalars_until_ = Until(seconds); }
  void VoteTwice(double seconds) { second_ballot_until_ = Until(seconds); }
  void SlowTransfers(double seconds) { slow_transfer_until_ = Until(seconds); }
  void AbstainNext(AbstainReason reason) { abstain_next_ = reason; }
  void LieInNextDigest() { lying_digest_next_ = true; }
  void KeepCallsAlive(double seconds) { orphans_until_ = Until(seconds); }
  // Says something that the protocol does not allow here. False: it is not connected.
  bool BreakProtocol();
  bool SayReadyAgain();
  bool FetchAgain();
  bool Damage();
  // Honest and quick from now on.
  void BeWell();

  // ---- HostEnd
  void OnDown(ConnectionId id, DownFrame frame) override;
  void OnClosed(ConnectionId id, const absl::Status& status) override;
  // ---- CallEnd
  void OnState(uint64_t call, const StateFrame& frame) override;
  void OnCallEnded(uint64_t call, const absl::Status& status) override;

 private:
  struct Ballot {
    RoundTicket ticket;
    std::vector<uint8_t> bits;
    BallotScalars scalars;
    std::optional<AbstainReason> abstains;  // in place of chunk `abstains_at`
    uint32_t abstains_at = 0;
    // Handed over so far; all of it goes again with a new attempt or connection.
    std::vector<bool> chunks;
    bool scalars_handed = false, abstained = false;
    uint64_t number = 0;
    uint32_t steps = 0;  // local steps that there is time for
  };

  Time Now() const { return world_->timeline.Now(); }
  Time Until(double seconds) const { return Now() + FromSeconds(seconds); }
  bool Is(Time until) const { return !world_->healed && Now() < until; }
  // Runs `what` after that time in this process, later if it hangs.
  void Later(double seconds, std::function<void()> what);
  // The same while this connection lasts.
  void Dial();
  void Forget();  // what a new process does not have
  void Exit(bool again);
  void Say(v1::WorkerMessage message);
  // This side ends the connection.
  void Drop(const absl::Status& why);
  void AfterConnection(const absl::Status& status, bool by_us);

  absl::Status Read(const DownFrame& frame);
  absl::Status Do(FollowerAction action, const v1::ServerMessage& message);
  void Joined();
  absl::Status CommitDue(const v1::Commit& commit);
  void Applied(const CommitEvent& commit);
  void Transfer(const TransferAction& action);
  void Advance();
  void SayDigest(bool last);

  // Hash of the held-out windows that it can measure.
  std::optional<uint64_t> Windows() const;
  void BeginEvaluation(const RoundTicket& ticket);
  void StartVote(const RoundTicket& ticket);
  void MakeBallot(const RoundTicket& ticket);
  void MakeLocalBallot(const RoundTicket& ticket);
  void ForgetPrevious();  // what is kept of the round before
  void HandChunk(uint64_t ballot, uint32_t k, double interval);
  void HandScalars(uint64_t ballot);
  void HandAll();
  void SendChunk(uint32_t k, const VoteId& vote);
  void SendScalars(const VoteId& vote);
  void SendAbstain(const VoteId& vote);

  // Constant after construction.
  World* const world_;
  ServerHost* const server_;
  const size_t host_;
  const std::string name_;

  // ---- of the process
  uint64_t life_ = 0;  // grows when what was scheduled is void
  bool up_ = false, out_ = false, finished_ = false, draining_ = false;
  Time hung_until_;
  std::unique_ptr<Follower> follower_;
  std::optional<RetryPolicy> retry_;
  std::optional<ConnectionId> connection_;
  std::shared_ptr<const v1::WorkerMessage> join_;  // said over it
  std::vector<float> x_, x_prev_, g_prev_;         // of the round before; empty: unknown
  std::unique_ptr<HostReplicaMemory> memory_;
  std::unique_ptr<Replica> replica_;
  std::unique_ptr<VerdictStore> store_;
  std::unique_ptr<VerdictAssembler> assembler_;
  HostDevice device_;
  std::unique_ptr<BallotPacker> packer_;
  std::unique_ptr<LocalStepSource> steps_;  // of a run that takes local steps
  // Why there is nothing from which this round could go on.
  std::optional<Round> lost_of_;
  AbstainReason lost_ = AbstainReason::kOther;
  std::unique_ptr<CatchUp> catch_up_;  // while a state is fetched
  uint64_t call_ = 0;                  // the transfer that goes on; 0: none
  TransferAction::Kind call_kind_ = TransferAction::Kind::kFetch;
  std::shared_ptr<std::vector<uint8_t>> prev_verdict_;
  std::optional<OpenedAction> opened_;
  std::optional<Ballot> ballot_;
  uint64_t last_ballot_ = 0;
  std::optional<Round> finish_rounds_;
  bool damaged_ = false;
  struct Measurement {
    HeldOutReport report;
    uint64_t ballots_left = 0;  // until it is known
  };
  std::optional<Measurement> measurement_;

  // ---- faults
  Time slow_until_, late_chunk_until_, no_scalars_until_, lying_scalars_until_;
  Time second_ballot_until_, slow_transfer_until_, orphans_until_;
  std::optional<AbstainReason> abstain_next_;
  bool lying_digest_next_ = false;
};

}  // namespace signvote::sim
