#pragma once
// What people and their programs see of a run: events, series, means, totals, logs, and who watches.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/wire_totals.h"
#include "server/round/view.h"
#include "server/run/history.h"
#include "server/run/rate_limit.h"
#include "server/run/roster.h"
#include "server/run/run_log.h"
#include "server/run/run_payloads.h"
#include "server/stepsize/local_schedule.h"
#include "server/stepsize/types.h"
#include "server/vote/open_vote.h"

namespace signvote::run {

// When something happened, on both clocks.
struct Moment {
  Time now;
  double unix_seconds = 0;  // since 1970
};

// A running mean. Threads: thread-compatible.
class Mean {
 public:
  void Add(double value) {
    ++count_;
    sum_ += value;
  }
  uint64_t count() const { return count_; }
  double value() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

 private:
  uint64_t count_ = 0;
  double sum_ = 0;
};

// Seconds, of one commit; robust means over voters where there are several.
struct CommitTimes {
  double round = 0, wait = 0, tally = 0, commit = 0;
  bool has_voter_times = false;
  double compute = 0, worker_apply = 0;
};

// Who wants to hear of every commit, for histograms. Threads: called on the run's thread; must not
// block.
class CommitListener {
 public:
  virtual ~CommitListener() = default;
  virtual void OnCommit(const CommitTimes& times) = 0;
  virtual void OnApplied(double seconds) = 0;
};

// Times that a worker says of itself.
struct VoterTimes {
  uint64_t compute_us = 0;  // round open to last chunk handed over
  uint64_t apply_us = 0;    // applying the previous commit
};

// What the engine's commit does not say of itself.
struct CommitNotes {
  std::span<const round::Seat> seats;                      // of the committed attempt
  std::span<const std::pair<WorkerId, VoterTimes>> times;  // of those whose scalars came
  double tally_seconds = 0;
  double commit_seconds = 0;  // from the decision to the hand-over to the network
  uint64_t payload_hash = 0;
};

// How the run stands, in the few words that a health check needs.
struct Health {
  bool ready = false;
  std::string not_ready_because;        // for people; empty when ready
  Round round;                          // committed
  uint64_t applier_lag = 0;             // rounds
  double last_commit_unix_seconds = 0;  // before the first: of the server's start
};

// What the books do not know by themselves. Cheap to fill.
struct LiveFacts {
  const round::EngineView* engine = nullptr;  // null: no engine yet
  bool ended = false;
  absl::Status journal;  // why no commit is released any more
  bool paused = false;
  bool layout_known = false, complete = false;
  uint64_t coordinates = 0, layout_digest = 0;  // 0: no layout yet
  uint64_t applier_lag = 0;                     // rounds
  std::string waits_for;                        // why no round goes on; empty: one does
  std::optional<WorkerId> evaluator;            // who measures the held-out loss
};

// One worker, for people.
struct WorkerPage {
  std::string name;
  Incarnation incarnation;
  bool connected = false;
  bool member = false;  // false: an observer
  std::string address, metrics_address;
  double agreement = std::numeric_limits<double>::quiet_NaN();
  double loss = std::numeric_limits<double>::quiet_NaN();
  double joined_seconds = std::numeric_limits<double>::quiet_NaN();
  double arrival_seconds = std::numeric_limits<double>::quiet_NaN();
  WireTotals wire;
  Share share;
  uint64_t ballots = 0, abstentions = 0, late_chunks = 0, duplicate_chunks = 0;
  std::optional<uint64_t> final_digest;
  std::optional<HeldOut> held_out;  // the last that it measured, for whomever
};

// As v1::Status.Phase: what a person needs to know of the engine's.
enum class PagePhase : uint8_t {
  kWaitingForWorkers,
  kRoundOpen,
  kPaused,
  kFinishing,
  kEnded,
  kWaitingForApplier,
  kBackingOff,
};

// Everything at one moment.
struct StatusPage {  // tidy: allow(members) v1::Status, field by field
  std::string run_id, rule, direction;
  Epoch epoch;
  PagePhase phase = PagePhase::kWaitingForWorkers;
  Round round;
  Attempt attempt;
  uint64_t main_round = 0, main_rounds = 0;  // main_rounds: planned; 0: unknown
  // minibatches: that all rounds so far asked of a worker; planned: of all main rounds; 0: unknown
  uint64_t minibatches = 0, minibatches_planned = 0;
  uint64_t coordinates = 0, layout_digest = 0;
  double stepsize = 0, rho = 1;
  std::string stepsize_warning;  // what its rule is short of, and the remedy; empty: nothing
  std::vector<std::pair<std::string, double>> rule_numbers;  // by which the rule went last
  RaceProgress race;
  double loss = std::numeric_limits<double>::quiet_NaN();
  double g_l1 = std::numeric_limits<double>::quiet_NaN();
  double density = std::numeric_limits<double>::quiet_NaN();
  double round_seconds = 0, seconds_left = std::numeric_limits<double>::quiet_NaN();
  double uptime_seconds = 0;
  struct {
    double compute = 0, wait = 0, tally = 0, commit = 0, apply = 0, worker_apply = 0, round = 0;
  } split;  // means over all committed rounds, seconds
  WireTotals wire;
  // of rounds, per parameter and minibatch of a worker
  double up_bits = std::numeric_limits<double>::quiet_NaN();
  double down_bits = std::numeric_limits<double>::quiet_NaN();
  std::vector<WorkerPage> workers;  // by WorkerId
  uint64_t joins = 0, losses = 0, abstentions = 0, late_chunks = 0, duplicate_chunks = 0;
  uint64_t attempts_reopened = 0, stale_messages = 0, scalars_refused = 0, digest_mismatches = 0;
  uint64_t master_digest = 0;
  Round master_digest_round;
  uint64_t ahead = 0;              // joins of workers ahead of the commits that were recovered
  uint64_t refusals = 0;           // sessions refused or ended for the worker's fault
  uint64_t ties = 0;               // coordinates voted on, all commits; estimated from samples
  double tie_ratio = 0;            // of the last commit, of the coordinates voted on
  uint64_t implausible_times = 0;  // times of workers that were clamped
  uint64_t events_held_back = 0, log_lines_dropped = 0;
  uint32_t workers_min = 0;
  uint64_t resident_bytes = 0;      // of the process; filled by who can ask for it
  std::optional<HeldOut> held_out;  // the run's last
  std::string evaluator;            // who measures it; empty: nobody
  Health health;
};

// What a watcher is answered.
struct WatchView {
  StatusPage status;
  std::vector<Event> events;
  std::optional<RoundSeries> series;  // absent: no round is committed yet
  std::vector<HeldOut> held_out;      // the run's, in order
};
using WatchDone = std::function<void(absl::StatusOr<WatchView>)>;

// Memory is bounded whatever peers send: the history's constants, kWatchersMax, and a page for each
// name that the roster remembers.
//
// Ownership:  borrows sinks and listener, which must outlive it.
// Threads:    thread-compatible; the run's thread. Nothing here waits.
// Failure:    none: what a log cannot take is dropped and counted.
class RunBooks {
 public:
  static constexpr size_t kWatchersMax = 64;
  static constexpr Duration kWatchMax = std::chrono::minutes(1);
  // A commit is applied to a replica within this, or the worker's clock is wrong.
  static constexpr double kApplySecondsMax = 600;

  struct Options {
    std::string run_id, rule, direction;  // for people
    Epoch epoch;
    uint64_t main_rounds = 0;  // planned; 0: unknown
    LocalSchedule local_steps;
    uint32_t workers_min = 1;
    Round round;                         // commits before this life of the server
    LineSink* round_log = nullptr;       // null: none is wanted
    LineSink* event_log = nullptr;       // likewise
    CommitListener* listener = nullptr;  // may be null
  };

  RunBooks(Options options, Moment start);

  // ---- what happens ----

  struct About {
    std::string_view worker;  // empty: no one worker's
    std::string_view reason;
    std::optional<Incarnation> incarnation;
    // Whose budget of lines it counts against when peers make such events: the host of a stranger, else
    // empty for `worker`.
    std::string_view who;
  };
  // Into the history and the event log. Returns whether it was told, for whoever has a line of its own
  // to write about the same: events that peers make are rate-limited, for each peer and all together,
  // those that rounds make for each worker, and the next one that is told says how many were not.
  bool OnEvent(Moment at, EventKind kind, const About& about);
  // A stream was accepted: its page.
  void OnJoined(WorkerId worker, std::string name, Incarnation incarnation, std::string address,
                std::string metrics_address);
  // It was made a member for the first time in this session.
  void OnSeated(WorkerId worker, Duration since_join);
  // Its live stream went: what it moved stays in the page.
  void OnGone(WorkerId worker);
  void Forget(WorkerId worker);
  void OnRefusal() { ++refusals_; }
  void OnAhead() { ++ahead_; }
  // The worker has said why it abstains from the open round.
  void OnAbstain(WorkerId worker, std::string_view reason);
  // A held-out loss that a worker has measured; whose name is filled in.
  void OnHeldOut(WorkerId worker, HeldOut held_out);
  void OnCommit(Moment at, const round::CommitRound& commit, const CommitNotes& notes);
  // What the last round's sample said of the chunks that are voted on, once it is known; `payloads` are
  // the run's.
  void OnStatistics(const OpenVote::Statistics& statistics, const RunPayloads& payloads);
  struct AppliedNote {
    Round next_round;
    std::optional<uint64_t> digest;
    double seconds = 0;
  };
  void OnApplied(Moment at, const AppliedNote& applied);
  // A digest of a worker's replica, for the event log.
  void OnDigest(Moment at, WorkerId worker, Round round, uint64_t digest);

  // ---- bytes ----

  // What the live session of a worker moved so far; replaces what was said before.
  void SetSessionBytes(WorkerId worker, uint64_t up, uint64_t down);
  // nullopt: of one whose session is over.
  void AddSetupBytes(std::optional<WorkerId> worker, uint64_t up, uint64_t down);
  WireTotals BytesOf(WorkerId worker) const;
  // All workers, those that are forgotten included. Kept, not counted anew.
  const WireTotals& total() const { return total_; }

  // ---- views ----

  Health HealthNow(const LiveFacts& facts) const;
  StatusPage Snapshot(Moment at, const Roster& roster, const LiveFacts& facts) const;
  const RunHistory& history() const { return history_; }

  // ---- who watches ----

  // True: `done` is kept and comes with AnswerWatchers(). False: it wants its answer now (no wait, or
  // kWatchersMax wait already); `done` is untouched.
  [[nodiscard]] bool Watch(uint64_t events_after, Duration wait, Time now, WatchDone&& done);
  std::optional<Time> NextWatcher() const;
  // Those whose time has come by `due`; all share one status. `status`: called at most once.
  void AnswerWatchers(Time due, const std::function<StatusPage()>& status);
  WatchView View(uint64_t events_after, StatusPage status) const;
  // Everybody is told why there is no answer.
  void RefuseWatchers(const absl::Status& status);

 private:
  struct Page {
    std::string name, address, metrics_address;
    Incarnation incarnation;
    double agreement = std::numeric_limits<double>::quiet_NaN();
    double loss = std::numeric_limits<double>::quiet_NaN();
    double joined_seconds = std::numeric_limits<double>::quiet_NaN();
    double compute_seconds = 0, apply_seconds = 0;
    WireTotals wire;  // of ended sessions; the live one's rounds are added on top
    uint64_t session_up = 0, session_down = 0;
    bool live = false;
    bool abstaining = false;     // was not counted in the last round in which it was a member
    std::string abstain_reason;  // of the open round, as it said itself
    std::optional<HeldOut> held_out;
    bool held_out_logged = true;
  };
  struct Watcher {
    uint64_t events_after = 0;
    Time due;
    WatchDone done;
  };

  void NoteTimes(Moment at, const round::CommitRound& commit, const CommitNotes& notes,
                 CommitTimes* out);
  double Clamped(uint64_t micros, double seconds_max);
  void NoteAbstentions(Moment at, const round::CommitRound& commit, const CommitNotes& notes);
  void NoteMinibatches(const round::CommitRound& commit);
  void WriteRound(Moment at, const round::CommitRound& commit, const CommitNotes& notes);
  void WriteEvent(const JsonLine& line);
  // How long the rounds take that the plan still has, at the pace of the last ones.
  double SecondsLeft(const StatusPage& page) const;
  JsonLine EventLine(Moment at, std::string_view kind) const;
  Page* FindPage(WorkerId worker);
  const Page* FindPage(WorkerId worker) const;
  std::string NameOf(WorkerId worker) const;

  // Constant after construction.
  const Options options_;
  const Moment start_;

  RunHistory history_;
  RateLimit budget_;  // of events that peers make
  RateLimit paced_;   // of those that rounds make
  std::map<WorkerId, Page> pages_;
  std::vector<Watcher> watchers_;  // bounded: kWatchersMax
  std::optional<round::CommitRound> last_commit_;
  std::vector<std::pair<std::string, double>> rule_numbers_;  // of the last commit that has some
  struct Pace {
    Time committed;
    uint32_t minibatches = 1;
  };
  std::deque<Pace> commit_times_;  // of the last commits
  double last_commit_unix_seconds_ = 0;
  Round round_;  // committed
  struct {
    uint64_t digest = 0;
    Round round;
  } master_;
  uint64_t ahead_ = 0, refusals_ = 0, implausible_times_ = 0, ties_ = 0;
  double tie_ratio_ = 0;
  WireTotals total_;
  struct {
    Mean round, compute, wait, tally, commit, apply, worker_apply;
  } means_;  // seconds
};

}  // namespace signvote::run
