#pragma once
// The coordinator's insides, in four files: coordinator.cc (the thread, time, the end),
// coordinator_join.cc (who comes and goes), coordinator_vote.cc (rounds), coordinator_books.cc
// (what people see). Included by nothing else.

#include <deque>
#include <limits>
#include <map>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/layout.h"
#include "common/process.h"
#include "common/rng.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "proto/wire/socket_bytes.h"
#include "proto/wire/wire.h"
#include "server/replica/applier.h"
#include "server/replica/buffer_pool.h"
#include "server/replica/commit_ring.h"
#include "server/replica/master_replica.h"
#include "server/rpc/ballot_slots.h"
#include "server/rpc/coordinator.h"
#include "server/rpc/history.h"
#include "server/rpc/probe.h"
#include "server/rpc/run_log.h"
#include "server/rpc/session.h"
#include "server/tally/tally.h"
#include "signvote/v1/training.pb.h"

namespace signvote::rpc {

using round::WorkerId;

inline constexpr Duration kApplierPatience = std::chrono::seconds(10);  // then a line in the log
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

enum class Stage {
  kConnected,     // no Join yet
  kHeld,          // joined under a name whose old session is being pinged
  kWaitingState,  // welcome once the initial parameters are there
  kUploading,     // welcomed, uploads them
  kFetching,      // welcomed, or told to resync; Ready comes after the transfer
  kKeeping,       // welcomed with its own replica; Ready comes at once
  kCatchingUp,    // gets missing commits from the ring
  kReady,         // gets everything as it happens
  kClosing,
};

struct Link;

// A name that ever joined.
struct WorkerRecord {
  WorkerId id;
  std::string name;
  Incarnation incarnation;
  Link* link = nullptr;  // its live session
  Link* held = nullptr;  // a newcomer under the same name
  bool evicted = false;
  Time last_seen;
  // For people:
  std::string address, metrics_address;
  double agreement = kNan, loss = kNan, joined_seconds = kNan;
  v1::WireTotals wire;  // of ended sessions; the live one's is added on top
  uint64_t whole_ballots = 0;
  double compute_seconds = 0, apply_seconds = 0;  // as it said in its last scalars
  bool abstaining = false;          // was not counted in the last round in which it was a member
  std::string_view abstain_reason;  // of the open round, as it said itself; empty: it did not
};

struct Link {
  std::shared_ptr<ServerSession> session;
  Stage stage = Stage::kConnected;
  Time since;  // of the stage
  Time joined;
  WorkerRecord* worker = nullptr;
  Incarnation incarnation;
  std::shared_ptr<const v1::Join> join;
  std::string ticket;
  std::shared_ptr<BallotSlots> slots;
  uint64_t ping_nonce = 0;
  Round next_send;         // kCatchingUp: the next commit to send
  bool in_engine = false;  // WorkerReady was said
  bool left = false;       // said Leave
  bool live = false;  // was there when the open attempt was opened: gets its verdicts as they come
  bool seated = false;  // has had a seat as member
  bool finish_sent = false;
  Round digest_logged;  // the latest round whose digest is in the event log
  // Bytes on the wire.
  std::optional<wire::SocketByteCounter> counter;
  wire::SocketBytes baseline, last;
};

inline std::string Hex(uint64_t value) { return absl::StrFormat("%016x", value); }
inline double UnixSeconds(const Clock& clock) {
  return static_cast<double>(clock.UnixMicros()) * 1e-6;
}
void AddBytes(const v1::WireTotals& in, v1::WireTotals* out);

class CoordinatorImpl final : public Coordinator {
 public:
  CoordinatorImpl(CoordinatorOptions options, Clock* clock, FileSystem* fs, RunId run_id,
                  v1::Direction direction, Rng rng, std::unique_ptr<RunLog> log,
                  std::unique_ptr<SafetensorsFile> init)
      : options_(std::move(options)),
        clock_(clock),
        fs_(fs),
        run_id_(run_id),
        direction_(std::move(direction)),
        started_(clock->Now()),
        hub_(clock),
        rng_(rng),
        log_(std::move(log)),
        tokens_(options_.tokens),
        init_(std::move(init)),
        waiting_since_(clock->Now()) {}

  ~CoordinatorImpl() override { Stop(); }

  // ---- any thread ----

  void Start() override {
    thread_ = std::thread([this] { Run(); });
  }

  void RequestStop() override;
  bool WaitUntilEnded(Duration timeout) override;
  absl::Status end_status() const override;
  void ReplaceTokens(TokenTable tokens) override;
  void CloseSessions(Duration timeout) override;
  void Stop() override;
  absl::Status ExportFinal(const std::string& path) override;
  Inbox* inbox() override { return &inbox_; }
  StateHub* hub() override { return &hub_; }
  const RunId& run_id() const override { return run_id_; }
  Epoch epoch() const override { return epoch_; }
  uint64_t session_buffer_bytes() const override { return options_.session_buffer_bytes; }

  void AddTransfer(std::shared_ptr<ServerSession> session, TransferBytes bytes) override;
  void Uploaded(std::shared_ptr<ServerSession> session) override;
  bool Post(std::function<void()> call) override { return inbox_.Push({nullptr, std::move(call)}); }

  absl::StatusOr<ServerSnapshot> Snapshot(Duration timeout) override;
  absl::StatusOr<Exported> CopyReplica() override;

  // ---- engine's thread: operator ----

  absl::Status Pause() override;
  absl::Status Resume() override;
  absl::Status Drain(const std::string& worker) override;
  absl::Status Evict(const std::string& worker) override;
  ServerSnapshot SnapshotNow() override;
  void Watch(uint64_t events_after, Duration wait, WatchDone done) override;

 private:
  // ---- the thread ----

  void Run();
  void Process(Input& input);
  void OpenBooks(const std::shared_ptr<ServerSession>& session);
  void Forget(ServerSession* session);
  void SetStage(Link* link, Stage stage);

  // ---- joining ----

  void On(Link* link, JoinIn& in);
  absl::Status CheckJoin(Link* link);

  // The first joiner's layout is the run's.
  absl::Status FixLayout(Layout layout);

  // Gives the newcomer its incarnation and what it needs to get to the current round.
  void Accept(Link* link);
  void Welcome(Link* link);
  void SendWelcome(Link* link, v1::Welcome::State state);

  // One worker uploads the initial parameters; the others are told whom they wait for.
  void NameUploader();
  void OnUploaded(ServerSession* session);

  // The initial parameters are complete.
  absl::Status StartEngine();
  void OnApplied(const Applier::Applied& applied);
  void On(Link* link, ReadyIn& in);

  // Sends missing commits from the ring, as far ahead as the stream takes them, then makes the
  // worker ready.
  void Feed(Link* link);
  void On(Link* link, RoomIn&) { Feed(link); }

  void On(Link* link, PongIn& in);
  void Refuse(Link* link, const absl::Status& status);
  static absl::Status EvictedStatus(const WorkerRecord& record);

  // ---- going ----

  void CloseLink(Link* link, absl::Status status);
  void On(Link* link, GoneIn& in);

  // The link no longer stands for its worker. Idempotent.
  void Detach(Link* link);

  // A layout without parameters and without anybody who could bring them binds nobody.
  void ForgetLayout();
  void On(Link* link, LeaveIn& in);

  // ---- voting ----

  // Whether the engine may hear of this link's worker.
  static bool Votes(const Link* link) { return link->worker != nullptr && link->in_engine; }

  void On(Link* link, BallotIn& in);
  void On(Link* link, ScalarsMessageIn& in);
  void On(Link* link, AbstainMessageIn& in);
  void On(Link* link, DigestMessageIn& in);

  // ---- the engine's actions ----

  // Carries the actions out in order. An action may end sessions, which makes further events: those
  // wait their turn.
  void Drive(round::Event event);
  Link* FindLink(WorkerId worker, Incarnation incarnation);
  void Execute(const round::OpenRound& open);
  void SendRoundOpen(Link* link, const round::Seat& seat);
  void Execute(const round::CloseChunk& close);
  wire::VoteHeader VerdictHeader(Round round, Attempt attempt, ChunkIndex k,
                                 uint64_t checksum) const;
  void Execute(const round::CommitRound& commit);
  static void FillCommit(const CommitRecord& record, const RunId& run_id, Epoch epoch,
                         v1::Commit* out);
  void FillCommit(const CommitRecord& record, v1::Commit* out) const {
    FillCommit(record, run_id_, epoch_, out);
  }

  // The commit differs between workers in one number only.
  void SendCommit(Link* link, v1::ServerMessage* message);
  void SendWholeRound(Link* link, const std::shared_ptr<const CommitRecord>& record);

  // Books, logs and catching up: everything about a commit that no worker of the next round waits
  // for.
  void AfterCommit();
  void Execute(const round::ChangeRole& change);
  void Execute(const round::Disconnect& disconnect);
  void Execute(const round::AskToDrain& ask);
  void Execute(const round::Resync& resync);
  void Execute(const round::FinishRun& finish);
  void Execute(const round::EndRun& end) { End(end.status); }
  void Execute(const round::Notice& notice);
  void SendDrain(Link* link);
  void SendFinish(Link* link);
  void SendResync(Link* link, const std::string& reason);

  // ---- the end ----

  void End(absl::Status status);

  // ---- time ----

  void Housekeeping(Time now);
  // All but the youngest few of the streams that have not joined yet.
  void CloseOldest(std::vector<Link*> strangers);

  // ---- books ----

  WorkerRecord* FindWorker(const std::string& name);
  WorkerRecord* FindOrAddWorker(const std::string& name);

  // In the open attempt: its commit names everybody who had one.
  bool HasSeat(WorkerId worker) const;
  // Names are free to invent without tokens: the one that has been away for longest makes room.
  void ForgetOldestName();
  void CountBytes(Link* link);
  static v1::WireTotals SessionBytes(const Link& link);
  v1::WireTotals WorkerBytes(const WorkerRecord& record) const;
  v1::WireTotals TotalBytes() const;
  JsonLine EventLine(std::string_view kind) const;

  // Into the event log and the history.
  struct EventAbout {
    std::string_view worker;  // empty: no one worker's
    std::string_view reason;
    std::optional<Incarnation> incarnation;
  };
  void Event(v1::Event::Kind kind, const EventAbout& about);
  void Event(v1::Event::Kind kind, const WorkerRecord* record) {
    Event(kind, {.worker = record->name, .incarnation = record->incarnation});
  }

  // Members of a round that were not counted although they were there.
  void NoteAbstentions(const round::CommitRound& commit, const std::vector<round::Seat>& seats);

  // ---- who watches ----

  void AnswerWatchers(Time due);
  v1::WatchReply WatchNow(uint64_t events_after);

  // Constant after construction.
  const CoordinatorOptions options_;
  Clock* const clock_;
  FileSystem* const fs_;
  const RunId run_id_;
  const Epoch epoch_{1};
  const v1::Direction direction_;
  const Time started_;

  // Own synchronisation.
  Inbox inbox_;
  StateHub hub_;
  std::thread thread_;

  mutable Mutex end_mu_;
  CondVar end_cv_;
  bool ended_ ABSL_GUARDED_BY(end_mu_) = false;
  bool stop_thread_ ABSL_GUARDED_BY(end_mu_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(end_mu_);
  size_t open_links_ ABSL_GUARDED_BY(end_mu_) = 0;
  std::shared_ptr<MasterReplica> final_replica_ ABSL_GUARDED_BY(end_mu_);
  Applier* final_applier_ ABSL_GUARDED_BY(end_mu_) = nullptr;  // lives as long as this object
  std::string final_config_ ABSL_GUARDED_BY(end_mu_);
  uint64_t final_rounds_ ABSL_GUARDED_BY(end_mu_) = 0;

  // The rest belongs to the engine's thread.
  Rng rng_;
  const std::unique_ptr<RunLog> log_;
  std::optional<TokenTable> tokens_;
  std::unique_ptr<SafetensorsFile> init_;
  Time waiting_since_;
  bool stop_requested_ = false, refuse_all_ = false, paused_ = false, end_seen_ = false;
  absl::Status closing_status_;  // what sessions are told when the server closes them

  std::unordered_map<ServerSession*, std::unique_ptr<Link>> links_;
  std::map<std::string, std::unique_ptr<WorkerRecord>> workers_;
  std::map<WorkerId, WorkerRecord*> by_id_;
  uint32_t next_worker_id_ = 0;

  // Set once the layout is known.
  std::optional<Layout> layout_;
  ChunkPlan plan_;
  std::shared_ptr<MasterReplica> replica_;
  std::unique_ptr<BufferPool> verdict_pool_, ballot_pool_;
  std::unique_ptr<CommitRing> ring_;
  std::string model_config_;

  // Set once the initial parameters are complete.
  std::unique_ptr<round::Engine> engine_;
  std::unique_ptr<Applier> applier_;
  std::deque<round::Event> events_;
  bool driving_ = false;

  // The open attempt.
  struct Voted {
    uint64_t agreeing = 0, coordinates = 0;
    uint32_t chunks = 0;
  };
  std::optional<round::OpenRound> open_;
  Time opened_at_;
  std::shared_ptr<uint8_t> verdict_;
  std::map<WorkerId, std::shared_ptr<BallotSlots>> round_slots_;
  std::map<WorkerId, Voted> voted_;
  std::vector<const uint8_t*> ballots_;  // of one chunk; kept for its memory
  std::vector<bool> closed_;
  uint32_t hashed_chunks_ = 0;  // Invariant: hash_ holds chunks [0, hashed_chunks_)
  Xxh3Stream hash_;
  Duration tally_time_{};
  uint64_t ties_in_round_ = 0;

  struct PendingCommit {
    round::CommitRound commit;
    std::shared_ptr<const CommitRecord> record;
    std::vector<round::Seat> seats;
    std::map<WorkerId, Voted> voted;
    Duration tally_time{};
    uint64_t ties = 0;
    Duration took{};  // from the decision to the hand-over to the network
  };
  std::optional<PendingCommit> pending_commit_;
  std::optional<Round> finish_rounds_;

  struct Watcher {
    uint64_t events_after = 0;
    Time due;
    WatchDone done;
  };
  std::vector<Watcher> watchers_;  // bounded: kWatchersMax

  // Statistics.
  RunHistory history_;
  std::optional<round::CommitRound> last_commit_;
  std::deque<Time> commit_times_;
  double last_commit_unix_seconds_ = UnixSeconds(*clock_);  // before the first commit: of the start
  uint64_t refusals_ = 0, ties_ = 0, ties_of_last_ = 0;
  uint64_t master_digest_ = 0;
  Round master_digest_round_;
  v1::WireTotals forgotten_wire_;
  Mean round_, compute_, wait_, tally_, commit_, apply_, worker_apply_;  // seconds
};

}  // namespace signvote::rpc
