#pragma once
// A run: everything that is decided about it is decided here, one input after the other. What the
// engine decides becomes tallies, messages and commits; what streams bring becomes events.
//
// How commits reach workers. Each stream has a cursor, the next commit to send to it:
//   - A worker that was ready when the round opened, and whose queue had room, is told live: chunks
//     of the verdict as they are counted, then the commit.
//   - Any other is fed whole rounds from the ring, as far ahead as its queue takes them. This holds
//     for one that catches up, one that has fallen behind, and, from the moment its FetchState
//     begins, one that fetches: the commits from the lowest round that a piece can stand at follow
//     on the stream while the pieces come, so that the fetch may last as long as it likes.
//   - One that the rounds outrun all the same is told so, with the budget that would have sufficed.
//   - Rounds that fill the server's link by themselves would outrun whoever fetches or catches up.
//     From the moment that such a stream could not be fed in time until it is ready, every next round
//     waits: as long as makes a round of n members (n + 2)/n of its usual length at most. That is what
//     rounds would take if the newcomer's verdicts and its transfer had the same share of the link as
//     a member's verdicts. After kGiveWayRounds of them it is not our link that is too slow.
//   - A worker that has caught up is made ready once it has acknowledged all but the last commit:
//     its Ready said so, or it has answered a Ping that was sent behind them. One whose round trip is
//     longer than a round never has, though it reads everything as it comes: it is let in after
//     kAdmitTries answers in a row within kAdmitPong each, behind by what was committed during the
//     last of those round trips (docs/decisions/0016).

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/direction_config.h"
#include "common/ids.h"
#include "common/rng.h"
#include "server/commit/commit_pipeline.h"
#include "server/commit/commit_ring.h"
#include "server/round/engine.h"
#include "server/run/admission.h"
#include "server/run/evaluation.h"
#include "server/run/fetch_budget.h"
#include "server/run/inputs.h"
#include "server/run/messages.h"
#include "server/run/peer.h"
#include "server/run/rate_limit.h"
#include "server/run/roster.h"
#include "server/run/run_books.h"
#include "server/run/run_model.h"
#include "server/run/run_state.h"
#include "server/run/tokens.h"
#include "server/stepsize/local_schedule.h"
#include "server/stepsize/rule_flags.h"
#include "server/vote/open_vote.h"

namespace signvote::run {

struct RunOptions {
  uint64_t seed = 0;             // of coins and minibatches
  uint64_t main_rounds_max = 0;  // 0: unknown; the rule ends the run
  uint32_t workers_min = 1;
  uint32_t quorum = 0;
  round::DeadlineConfig deadline;
  uint32_t observer_after = 5;
  uint32_t warm_in_rounds = 0;
  uint32_t nonfinite_rounds = 5;
  uint64_t share_hold_rounds = 100;
  uint64_t digest_every = 50;
  uint64_t evaluate_every = 50;  // rounds between held-out losses; 0: none is asked for
  Duration wait_timeout = std::chrono::hours(1);
  Duration stop_wait = std::chrono::seconds(10);
  Duration linger = std::chrono::seconds(30);
  Duration return_wait{};  // of a run that is taken up, for those who were there; 0: none
  RunModel::Options model;
  Roster::Options roster;
  FetchBudget::Options fetches;
  DirectionConfig direction;
  std::optional<double> clip_norm;  // of each worker's minibatch gradient; nullopt: none
  RuleFlags rule;
  LocalSchedule local_steps;  // of main_rounds_max
  bool tls = false;           // peers must show a worker's certificate of their name
};

// What its rule is made for.
RuleRun RuleRunOf(const RunOptions& options);

// What a run leaves to others, who are given to it.
class RunHost {
 public:
  virtual ~RunHost() = default;
  // The parameters are complete: from now on `replica` moves by the commits that the result is
  // given; each is answered with an Applied input. At most `backlog_max` wait there. Said once; the
  // result lives at least as long as the run.
  virtual CommitConsumer* StartApplier(const std::shared_ptr<MasterReplica>& replica,
                                       size_t backlog_max) = 0;
  // No commit from `round` on needs x0: the applier lets go of it when it comes there (DropX0From).
  virtual void DropX0From(Round round) = 0;
  // The model is known: LoadInitial(*init, *replica) on a thread of its own, because it reads files and
  // touches all of the replica. Its answer comes as an InitLoaded input, once `init` is given up. Said
  // at most once, and only of a run with RunParts::init.
  virtual void LoadInitial(std::unique_ptr<InitialParameters> init,
                           std::shared_ptr<MasterReplica> replica);
};

struct RunParts {
  Clock* clock = nullptr;  // wall time, and how long own work took
  RunHost* host = nullptr;
  TallySink* tally = nullptr;  // its results come back as ChunkTallied inputs, never inside a call
  // Null: durability `none`, commits are released as they are proposed. Else its answers come back
  // as DurableIn inputs.
  Durability* durability = nullptr;
  LineSink* round_log = nullptr;  // null: none is wanted, here and below
  LineSink* event_log = nullptr;
  CommitListener* listener = nullptr;
  Rng rng{0, 0};                     // for numbers that a peer should not guess
  std::optional<TokenTable> tokens;  // nullopt: no token is asked for
  RunModel::MemoryReader memory;
  std::unique_ptr<InitialParameters> init;  // null: the parameters come from a worker
  std::unique_ptr<StepsizeRule> rule;       // null: the one that RunOptions::rule names
};

// Ownership:  owns its books, its engine, the ring and the model's memory. What RunParts points to
//             must outlive it.
// Threads:    thread-compatible; one thread drives it. Nothing here waits.
// Failure:    what workers do wrong ends their stream; what makes the run impossible ends the run.
// Invariants: those of its parts. Streams are told in the order of their numbers, so that the same
//             inputs at the same times have the same effects.
class Run {
 public:
  // Makes the run that `state` says: a fresh one, or one that goes on where it was left, in which
  // case nobody is here and every stream is told to fetch or keep as usual. INVALID_ARGUMENT: an
  // option that cannot work. FAILED_PRECONDITION: `state` does not fit the options.
  static absl::StatusOr<std::unique_ptr<Run>> Create(RunOptions options, RunParts parts,
                                                     RunState state, Time now);
  ~Run();

  // The next thing that happened, at a time that never goes back.
  void Handle(Time now, Input input);
  // When a TickIn is due; nullopt: only another input can change something.
  std::optional<Time> NextTick() const;

  // ---- operator ----

  absl::Status Pause(Time now);
  absl::Status Resume(Time now);
  // NOT_FOUND: no such worker is connected.
  absl::Status Drain(Time now, std::string_view worker);
  // NOT_FOUND: never seen.
  absl::Status Evict(Time now, std::string_view worker);
  // No further round opens; the open one may complete.
  void RequestStop(Time now);
  // From now on joins are checked against these. Streams go on, whatever became of their tokens.
  void ReplaceTokens(TokenTable tokens);
  // Every stream is closed, after what is queued for it when all is well, and nobody joins any more.
  void CloseStreams(Time now);

  // ---- views ----

  bool ended() const { return stop_.ended; }
  // OK: finished, or stopped by the operator. With the exit code of the program. REQUIRES: ended().
  const absl::Status& end_status() const { return stop_.status; }
  Health HealthNow() const;  // cheap: asked by health checks, again and again
  StatusPage Snapshot(Time now);
  // `done` is called after `wait` (at most a minute), when the run ends, or at once when too many
  // wait already.
  void Watch(Time now, uint64_t events_after, Duration wait, WatchDone done);
  // Everybody who watches is told why there is no answer.
  void RefuseWatchers(const absl::Status& status) { books_.RefuseWatchers(status); }
  // The run as another process could take it up. FAILED_PRECONDITION: a commit is on its way, or the
  // replica has not applied all commits. What is open of a round is not part of it.
  absl::StatusOr<RunState> State() const;

  const RunId& run_id() const { return facts_.run_id; }
  Epoch epoch() const { return facts_.epoch; }
  // Where the rule goes on from; nullopt: it begins anew.
  std::optional<float> resumed_stepsize() const;
  const RunModel& model() const { return *model_; }
  size_t streams() const { return streams_.size(); }  // those that are closing included
  Round committed() const;                            // rounds that were published

  // Answers in a row, each within kAdmitPong, after which one that is never within one commit is ready.
  static constexpr uint32_t kAdmitTries = 8;
  static constexpr Duration kAdmitPong = std::chrono::seconds(1);
  // A stream is fed whole rounds while less than this, and than the session's buffer, is queued.
  static constexpr size_t kFeedBytes = size_t{1} << 20;
  // The next round waits no longer than this for whom it outruns.
  static constexpr Duration kGiveWayMax = std::chrono::seconds(30);
  // Rounds that give way to one name: twice as many as a fair share of the link takes to move the
  // replica, which is as large as 32 verdicts.
  static constexpr uint32_t kGiveWayRounds = 64;
  // One of them comes back in this time; of all names together, of which there may be four, four do.
  static constexpr Duration kGiveWayRefill = std::chrono::minutes(1);
  // Commits behind which one that fetches is outrun; one that catches up is as soon as it is behind.
  static constexpr uint64_t kFetchingBehind = 2;

 private:
  // State transfers of a stream: the one that goes on, and those before it.
  struct StateCalls {
    std::shared_ptr<StateCall> call;  // null: none goes on
    CallKind kind = CallKind::kFetch;
    bool fetched = false;  // a fetch was begun
  };

  // Has the stream read everything before `round`?
  struct AdmitPing {
    uint64_t nonce = 0;  // 0: it was not asked, or has answered
    Round round;
    Time sent;
    uint32_t tries = 0;  // answered in time, in a row
  };

  // What the run keeps of one stream, beside the roster's record.
  struct Stream {
    PeerId id;
    std::shared_ptr<Peer> peer;
    const Roster::StreamRecord* record = nullptr;
    std::optional<CheckedJoin> join;  // until it is welcomed
    std::shared_ptr<BallotSlots> slots;
    StateCalls transfers;
    // The cursor. Meaningless unless `following`.
    bool following = false;
    Round next_send;         // Invariant: <= published
    Round acknowledged;      // it has read all commits before
    bool live = false;       // is told of the open attempt as it happens
    bool owed_open = false;  // RoundOpen follows once it has everything before
    bool outrun = false;     // rounds give way until it is ready
    bool given_up = false;   // they do no longer: its name has had its share
    // What it is asked.
    uint64_t fence_nonce = 0;  // is it there?
    AdmitPing admit;
    // What it was or said.
    bool in_engine = false;        // WorkerReady was said
    bool left = false;             // said Leave
    bool wants_run_state = false;  // saves its replica
    bool seated = false;           // has had a seat as member
    bool finish_sent = false;
    Round digest_logged;  // the latest round whose digest is in the event log
    PeerBytes baseline;   // when it was accepted: setup
    PeerBytes moved;      // since then, when it was last looked at
  };

  // A commit on its way.
  struct Proposed {
    round::CommitRound commit;
    std::vector<round::Seat> seats;
    std::vector<std::pair<WorkerId, VoterTimes>> times;
    Duration tally_time{};
    Time decided;
    uint64_t payload_hash = 0;
  };
  struct Published {
    Proposed proposed;
    Duration took{};  // from the decision to the hand-over to the network
  };

  // A published commit behind which the next round waits.
  struct GivingWay {
    Round committed;
    Time until;
  };

  // The parts that exist once the parameters are complete.
  struct RoleTold {
    round::Role role = round::Role::kMember;
    std::string worker, reason;
  };

  // Where the run stands behind the commit of `round`, for workers that save their replica; null: nobody
  // who is here does. Of the last one that was decided alone: it grows with the workers, and the ring keeps
  // many commits.
  struct ForSaves {
    Round round;
    std::shared_ptr<const std::string> state;
  };
  struct Course {
    Course(const CommitRing::Options& ring_options, OpenVote::Options vote_options,
           TallySink* tally, RunModel* model, Round round)
        : ring(ring_options),
          vote(std::move(vote_options), tally, &model->verdicts(), &model->ballots(),
               model->optimizer_states()),
          told(round) {}

    CommitRing ring;
    OpenVote vote;
    std::unique_ptr<Durability> none;  // unless the host has one
    std::unique_ptr<CommitPipeline> pipeline;
    std::unique_ptr<round::Engine> engine;
    std::deque<round::EngineEvent> events;  // for the engine, in order
    bool driving = false;
    bool room = true;          // as the engine was told
    Round told;                // workers are told of all commits before
    uint64_t main_rounds = 0;  // of those
    bool x0_dropped = false;   // the host was told to
    std::optional<round::OpenRound> open;
    Time opened_at;
    std::map<WorkerId, VoterTimes> times;  // of the open attempt
    bool counted = false;  // the last attempt was, and its statistics are not in the books yet
    std::optional<Proposed> proposed;  // and not published yet
    ForSaves for_saves;
    std::vector<Published> published;  // and not in the books yet
    // That a commit brought which is not in the books yet: told with it.
    std::vector<RoleTold> roles;
    std::optional<GivingWay> giving_way;
    RateLimit ways{
        {.each = {.burst = kGiveWayRounds, .refill = kGiveWayRefill},
         .all = RateLimit::Budget{.burst = 4 * kGiveWayRounds, .refill = kGiveWayRefill / 4}}};
    Duration usual{};  // mean length of rounds while nobody fetched or was behind; 0: unknown
  };

  struct Stop {
    bool requested = false, refuse_all = false, paused = false, ended = false;
    Time waiting_since;             // without an engine
    absl::Status status;            // once ended
    absl::Status closing_status;    // what streams are told when they are closed for good
    std::optional<Round> finished;  // rounds of a run that came to its end
    absl::Status journal;           // why no commit is released any more
    Time journal_failed;
  };

  Run(RunOptions options, RunParts parts, WelcomeFacts facts, std::unique_ptr<StepsizeRule> rule,
      std::unique_ptr<RunModel> model, const RunState& state, Time now);

  Moment At(Time now) const;
  Stream* Find(PeerId peer);
  // The ready or joining stream of a worker in the engine's eyes.
  Stream* FindLive(WorkerId worker, Incarnation incarnation);
  const Roster::StreamRecord& RecordOf(const Stream& stream) const { return *stream.record; }
  Stage StageOf(const Stream& stream) const { return RecordOf(stream).stage; }
  // Whose stream it is; null: nobody's.
  const Roster::Worker* WorkerOf(const Stream& stream) const;
  std::string WorkerName(const Stream& stream) const;  // "": nobody's

  // ---- run_join.cc: who comes and goes ----
  void On(Time now, Stream& s, JoinIn& in);
  void On(Time now, Stream& s, ReadyIn& in);
  void On(Time now, Stream& s, PongIn& in);
  void On(Time now, Stream& s, LeaveIn& in);
  void On(Time now, Stream& s, GoneIn& in);
  void On(Time now, Stream& s, CallAsked& in);
  void On(Time now, Stream& s, CallProgress& in);
  void On(Time now, Stream& s, CallEnded& in);
  void On(Stream* s, const CallMoved& in);  // null: the stream is done
  void Accept(Time now, const Roster::Accepted& accepted);
  void Welcome(Time now, Stream& s);
  void SendWelcome(Time now, Stream& s, v1::Welcome::State state);
  // One worker uploads the initial parameters, where nobody does and none come from --init. True: it was
  // named now, and all others who wait have been told.
  bool NameUploader(Time now);
  // What those wait for who have joined and are not welcomed.
  v1::ServerMessage AwaitedNotice();
  void Uploaded(Time now, Stream& s, float max_abs);
  void On(Time now, const InitLoaded& loaded);
  // The parameters are complete.
  void BeginCourse(Time now);
  static round::EngineConfig EngineConfigOf(const RunOptions& options);
  // `recent`: commits before state.round, for whoever lacks a few.
  absl::Status StartCourse(Time now, const round::EngineState& state,
                           const std::vector<std::shared_ptr<const CommitRecord>>& recent);
  absl::Status CheckFetch(Time now, const Stream& s);
  void Refuse(Time now, Stream& s, const std::string& name, const absl::Status& status);
  void CloseStream(Time now, Stream& s, absl::Status status);
  // The stream no longer stands for its worker. Idempotent.
  void Detach(Time now, Stream& s, const std::string& reason);
  void ForgetNames();
  void CountBytes(Stream& s);
  void CountBytes(Stream& s, WorkerId worker);
  // Whoever waits for workers waits on.
  void Arriving(Time now, const Stream& s);

  // ---- run_feed.cc: how commits reach workers ----
  void On(Time now, Stream& s, RoomIn&) { Feed(now, s); }
  // The cursor is set. REQUIRES: the ring reaches `from`.
  void Follow(Stream& s, Round from);
  void Feed(Time now, Stream& s);
  // What becomes of one that has everything.
  void CaughtUp(Time now, Stream& s);
  void Admit(Time now, Stream& s);
  // The ring no longer holds what the stream needs.
  void FellBehind(Time now, Stream& s);
  // After it was fed: whether rounds shall give way to it.
  void NoteOutrun(Stream& s);
  bool AnyOutrun() const;
  // The next round does; each name has its share of such rounds, whatever streams it comes with.
  void GiveWay(const Proposed& proposed);
  // How long the next round may wait for those who are outrun.
  Duration MayGiveWay(const Proposed& proposed) const;
  // The engine hears of the commit behind which the next round waits.
  void EndGivingWay(Time now);
  void SendRound(Stream& s, const std::shared_ptr<const CommitRecord>& record);
  void SendCommit(Stream& s, Round round, v1::ServerMessage* message);
  void SendRoundOpen(Time now, Stream& s);
  void SendResync(Time now, Stream& s, const std::string& reason);
  void SendFinish(Stream& s);

  // ---- run_vote.cc: rounds ----
  void On(Time now, Stream& s, BallotIn& in);
  void On(Time now, Stream& s, ScalarsIn& in);
  void On(Time now, Stream& s, AbstainIn& in);
  void On(Time now, Stream& s, DigestIn& in);
  void On(Time now, const ChunkTallied& tallied);
  void On(Time now, const Applied& applied);
  // Gives the engine an event and carries its actions out in order. An action may end streams, which
  // makes further events: those wait their turn.
  void Drive(Time now, round::EngineEvent event);
  void Drive(Time now);
  void Step(Time now, const round::EngineEvent& event);
  void Execute(Time now, const round::OpenRound& open);
  void Execute(Time now, const round::CloseChunk& close);
  void Execute(Time now, const round::CommitRound& commit);
  void Execute(Time now, const round::Disconnect& disconnect);
  void Execute(Time now, const round::AskToDrain& ask);
  void Execute(Time now, const round::Resync& resync);
  void Execute(Time now, const round::RoleChanged& change);
  void Execute(Time now, const round::PauseSet& pause);
  void Execute(Time now, const round::FinishRun& finish);
  void Execute(Time now, const round::EndRun& end);
  void Execute(Time now, const round::Notice& notice);
  void Execute(Time, const round::ShareGiven&) {}  // EngineState has it, here and below
  void Execute(Time, const round::ShareFreed&) {}
  void Execute(Time, const round::EvictionMade&) {}
  // A commit is the law: everybody is told.
  void Publish(const std::shared_ptr<const CommitRecord>& record);
  // Books, logs and whoever is fed: everything about a commit that no worker of the next round waits
  // for.
  void AfterCommits(Time now);
  void TellRoom();
  void TellRoles(Time now);
  void NoteStatistics();
  bool IsOpen(Round round, Attempt attempt) const;
  // One of those that can is asked to measure the replica of the round that opens, when it is time.
  void AskForEvaluation(Time now, Round round, std::span<const round::Seat> seats);
  void TakeHeldOut(Time now, const Stream& s, const Evaluation::Measured& measured);

  // ---- run_journal.cc: what outlives the process ----
  bool keeps_run() const { return parts_.durability != nullptr && parts_.durability->keeps_run(); }
  // The state without planes, and without what the optimizer keeps. REQUIRES: no round is open.
  RunState Progress() const;
  void BeginJournal(const RunState& start);
  void NoteName(std::string_view worker);
  void NoteState(const std::vector<OpenVote::Result::Counted>& counted);
  // The run as a journal begins with it; `state` without planes.
  v1::JournalHead HeadOf(const RunState& state) const;
  // What a worker's file says of the run; "": this run's state has no room there.
  std::string HeadForSave(Time now);
  // Where it stands behind the commit; null: nobody who is here wants it. REQUIRES: as NoteState().
  std::shared_ptr<const std::string> StateForSaves() const;
  // The worker's replica is made of commits of this run, and the ring has those that it lacks.
  bool MayKeep(const CheckedJoin& join) const;
  void On(Time now, const JournalFailed& failed);

  // ---- run.cc: time and the end ----
  void Tick(Time now);
  void End(Time now, absl::Status status);
  void AnswerWatchers(Time now, Time due);
  bool Event(Time now, EventKind kind, const RunBooks::About& about);
  // Why the run cannot go on, or begin, although the parameters are there; "" when it could.
  std::string WaitsFor() const;
  // Whether a line about what `key` names is written now: for what peers can make happen as often as
  // they like. `text` then says how many of its kind were not.
  bool MayTell(Time now, const std::string& key, std::string* text);
  LiveFacts Facts(const round::EngineView* view) const;

  // Constant after construction.
  const RunOptions options_;
  Clock* const clock_;
  const size_t feed_bytes_;
  const RunParts parts_;  // but for what Create() took out of it
  const WelcomeFacts facts_;

  Rng rng_;
  std::optional<TokenTable> tokens_;
  std::unique_ptr<StepsizeRule> rule_;  // until the engine takes it
  std::unique_ptr<RunModel> model_;
  Roster roster_;
  RunBooks books_;
  Evaluation evaluation_;
  std::unique_ptr<Course> course_;  // null: no parameters yet
  std::map<PeerId, Stream> streams_;
  // The same by hash: every input looks for its stream.
  absl::flat_hash_map<PeerId, Stream*> by_peer_;
  FetchBudget fetches_;
  RateLimit lines_;  // of the log, beside those of events
  Time now_;         // of the input at hand
  Stop stop_;
  std::vector<EpochBegun> begun_;  // RunState::begun
};

}  // namespace signvote::run
