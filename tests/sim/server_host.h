#pragma once
// The server's side of a simulated run: the product's Run, and around it what a process gives to it:
// streams, tallies, a durability policy, an applier, state transfers, a clock that ticks.

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/replica/applier.h"
#include "server/run/run.h"
#include "server/vote/tally_sink.h"
#include "tests/sim/sim_journal.h"
#include "tests/sim/state_call.h"
#include "tests/sim/world.h"

namespace signvote::sim {

class SimPeer;

class ServerHost final : public ServerEnd,
                         public run::RunHost,
                         public CommitConsumer,
                         public Durability,
                         public TallySink {
 public:
  explicit ServerHost(World* world);
  ~ServerHost() override;

  // A fresh run begins to serve.
  void Start();

  // ---- calls of workers
  // Returns the call's number; 0: nobody serves.
  uint64_t Call(run::CallKind kind, const std::string& ticket, size_t host, double seconds_per_part,
                std::shared_ptr<const std::vector<float>> values, CallEnd* end);
  // The worker has gone.
  void Abandon(uint64_t call);

  // ---- what the operator and the faults ask for
  void Pause() { (void)run_->Pause(Now()), Settle(); }    // never fails
  void Resume() { (void)run_->Resume(Now()), Settle(); }  // likewise
  absl::Status Drain(const std::string& worker);
  absl::Status Evict(const std::string& worker);
  enum class Restart { kBetweenRounds, kAfterStop };
  // As soon as it can be, the run is written to bytes, the process ends, and `seconds` later another
  // one goes on from there. False: one is asked for already.
  bool AskForRestart(Restart how, double seconds);
  // The process dies, with a journal: at once, or in the middle of one of its next writes; `seconds` later
  // another one goes on from what the disk has. False: there is no journal, or nothing to lose yet.
  bool Kill(SimDisk::Restart how, bool in_write, double seconds);
  // Writes or syncs fail, or the disk is full: nothing more is told until the server is started again.
  bool BreakDisk(const DiskFaults& faults, double seconds,
                 SimDisk::Restart how = SimDisk::Restart::kProcess);
  // Delays of whoever works for the run; zero: at once.
  void DelayApplier(double seconds) { applier_seconds_ = seconds; }
  void DelayTally(double seconds) { tally_seconds_ = seconds; }
  void DelayDurable(double seconds) { durable_seconds_ = seconds; }

  // A disk that lied has left nothing to go on with, which the server has said.
  bool journal_is_lost() const { return journal_lost_; }
  const SimJournal* journal() const { return journal_.get(); }
  bool serving() const { return run_ != nullptr; }
  bool ended() const { return end_.has_value(); }
  const absl::Status& end() const { return *end_; }
  run::StatusPage Page() { return run_->Snapshot(Now()); }

  // ---- ServerEnd
  void OnOpened(ConnectionId id) override;
  void OnUp(ConnectionId id, UpFrame frame) override;
  void OnRoom(ConnectionId id) override;
  void OnGone(ConnectionId id, const std::string& why, bool by_server) override;
  void OnDone(ConnectionId id) override;
  // ---- RunHost
  CommitConsumer* StartApplier(const std::shared_ptr<MasterReplica>& replica,
                               size_t backlog_max) override;
  void DropX0From(Round round) override { applier_->DropX0From(round); }
  // ---- CommitConsumer
  bool TryPush(const std::shared_ptr<const CommitRecord>& record) override;
  // ---- Durability
  void Append(std::shared_ptr<const CommitRecord> record) override;
  bool keeps_run() const override { return journal_ != nullptr; }
  void Begin(const v1::JournalHead& head,
             std::shared_ptr<const std::vector<float>> optimizer) override;
  void NoteName(const v1::JournalName& name) override;
  void NotePause(bool paused) override;
  void NoteChunk(Chunk chunk) override;
  void NoteState(std::shared_ptr<const v1::RunState> state,
                 std::shared_ptr<const std::vector<float>> optimizer,
                 std::vector<Voters> voters) override;
  // ---- TallySink
  void Submit(TallyJob job) override;
  void DropWaiting() override;

 private:
  Time Now() const { return world_->timeline.Now(); }
  void Make(run::RunState state);
  // The process with all that is its own.
  void Drop();
  // Another process, with what the journal has.
  absl::StatusOr<run::RunState> OpenJournal();
  void Recover();
  void Killed(double seconds, SimDisk::Restart how = SimDisk::Restart::kProcess);
  void Give(run::Input input);
  void GiveStream(ConnectionId id, decltype(run::StreamInput::what) what);
  // After whatever was said to the run: its clock, its end, a restart that waits.
  void Settle();
  void ArmTick(Time at);
  void TryRestart();
  void LookAtApplier();
  void Released(Round round);
  void Count(const TallyJob& job);
  void AccountFor();

  // Constant after construction.
  World* const world_;

  const std::unique_ptr<SimJournal> journal_;  // null: the run has none
  double killed_seconds_ = 0;                  // from a kill that is on its way to the next start
  bool breaks_ = false;                        // the disk fails
  bool lied_ = false;                          // it has said that it synced what it had not
  bool journal_lost_ = false;

  // Of the process. Whatever it left on the timeline compares `life_`.
  uint64_t life_ = 0;
  std::unique_ptr<Applier> applier_;
  std::shared_ptr<MasterReplica> replica_;
  std::unique_ptr<run::Run> run_;
  std::map<ConnectionId, std::shared_ptr<SimPeer>> peers_;
  std::map<std::string, ConnectionId> tickets_;
  // Of all streams, those too that are gone: what they sent before still counts.
  std::map<ConnectionId, std::shared_ptr<BallotSlots>> slots_;
  std::map<uint64_t, std::pair<ConnectionId, std::shared_ptr<SimCall>>> calls_;
  uint64_t last_call_ = 0;
  std::deque<std::pair<uint64_t, TallyJob>> jobs_;
  uint64_t last_job_ = 0;
  bool applier_looks_ = false;
  bool durable_looks_ = false;
  Round appended_;  // next commit to be released
  std::optional<Time> tick_at_;
  Time last_tick_;
  uint32_t ticks_in_vain_ = 0;

  double applier_seconds_ = 0, tally_seconds_ = 0, durable_seconds_ = 0;
  struct Wanted {
    Restart how = Restart::kBetweenRounds;
    double seconds = 0;
  };
  std::optional<Wanted> restart_;
  std::optional<absl::Status> end_;
};

}  // namespace signvote::sim
