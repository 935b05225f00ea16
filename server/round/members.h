#pragma once
// Everybody who takes part or took part: names and incarnations, roles, shares, how long each one's
// ballots take, and who is forgotten.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "server/round/arrivals.h"
#include "server/round/attempt.h"
#include "server/round/config.h"
#include "server/round/shares.h"
#include "server/round/state.h"
#include "server/round/types.h"
#include "server/round/view.h"

namespace signvote::round {

// Whether a member's ballot counts as given (engine.h, "Given").
bool Given(const SeatRecord& record, uint32_t chunks);

// What the engine knows of one name.
struct Worker {
  explicit Worker(const ArrivalState& state = {}, const LocalArrivalState& local_state = {})
      : arrivals(kArrivalsPerWorker, state), local(kArrivalsPerWorker, local_state) {}
  bool ready() const { return connected && !leaving; }

  std::string name;
  Incarnation incarnation;
  bool connected = false;
  bool leaving = false;
  bool evicted = false;
  bool admitted = false;            // this incarnation has had a seat
  std::optional<Incarnation> seat;  // which of its incarnations has one in the open attempt
  bool scalars_refused = false;     // the last ones
  bool growth_noticed = false;
  Role role = Role::kMember;
  uint32_t warm_in = 0;  // rounds for which its ballots have weight 0 yet
  Round last_seen;       // when it was lost
  uint32_t abstentions_in_a_row = 0;
  uint64_t abstentions = 0;
  uint64_t ballots = 0;
  uint64_t late_chunks = 0;
  uint64_t duplicate_chunks = 0;
  ArrivalHistory arrivals;
  LocalArrivals local;
  std::optional<Round> arrived_in;  // the round of the last entry in arrivals
  std::optional<uint64_t> final_digest;
};

// Threads:    thread-compatible.
// Invariants: at most workers_max are connected. Known are those, as many that are away, those who
// have a seat, and everybody who was evicted: neither of the last two keeps a newcomer out.
class Members {
 public:
  Members(const EngineConfig& config, const EngineState& state);

  // ---- come and go
  struct Joined {
    bool joined = false;  // false: full, evicted (the action says so), or stale (counted)
    std::optional<Incarnation> replaced;  // the older incarnation, lost by this
  };
  // `warm_in`: rounds for which its ballots have weight 0; nullopt: as many as were left when it was
  // lost.
  Joined Join(const WorkerReady& e, std::optional<uint32_t> warm_in, Round round, Actions& out);
  // The worker if this is its current, connected incarnation; else null, and the message is stale.
  Worker* Live(WorkerId id, Incarnation incarnation);
  // REQUIRES: w is connected, and of that id.
  void Lose(WorkerId id, Worker& w, Round round, Actions& out);
  // Returns the incarnation that was connected, which is lost by this, if there was one.
  std::optional<Incarnation> Evict(WorkerId id, Round round, Actions& out);

  const Worker* Find(WorkerId id) const;
  // Its name, or words for it.
  std::string Name(WorkerId id) const;
  size_t ready() const;
  bool AnyReadyWithoutSeat() const;
  bool AllFinalDigestsIn() const;
  // Names of those who are ready, and have not sent their final digest.
  std::vector<std::string> WithoutFinalDigest() const;

  // ---- an attempt
  // Gives everybody who is ready a seat, by WorkerId; with observers only they are members again. Who
  // is still to be warmed up is uncounted.
  std::vector<Seat> SeatEverybody(Round round, Actions& out);
  void Unseat();
  // How long the attempt waits for these, who take their minibatches so; names those that it waits for no
  // longer than it may, once. With local steps it says in each seat when its worker shall stop taking
  // them: before that time is over, by as long as its ballots usually travel and one minibatch takes.
  Duration Wait(const LocalSteps& local, std::vector<Seat>& seats, Actions& out);

  // ---- a commit
  // The record of one seat in the round that was just committed, and the role that follows from it.
  // arrival: when its last chunk came, after the opening; nullopt when that says nothing.
  struct SeatReport {
    Seat seat;
    SeatRecord record;
    bool given = false;
    std::optional<Duration> arrival;
    std::optional<LocalArrivals::Part> local = std::nullopt;  // of it, with local steps
  };
  void Account(const SeatReport& report, Round round, Actions& out);
  // Nobody's direction has a state that others lack.
  void WarmUpAll();
  // How long ballots took in a round that was committed in its first attempt.
  void AddRound(std::vector<Duration> arrivals);
  // The same with local steps.
  void AddLocalRound(const std::vector<LocalArrivals::Part>& parts);
  // A chunk of an earlier round came after its commit.
  void AddLateChunk(Worker& w, Round round, std::optional<Duration> arrival);
  // So did scalars, of a ballot with local steps.
  static void AddLateBallot(Worker& w, const LocalArrivals::Part& part) { w.local.Add(part); }

  EngineTotals& totals() { return totals_; }
  const EngineTotals& totals() const { return totals_; }
  // Of every worker; whether it is a member of the open round is for the caller to say.
  std::vector<MemberView> View() const;
  // Fills in workers, shares, arrivals and totals, as after losing everybody in `round`.
  void Save(Round round, EngineState& state) const;

 private:
  void Forget(Actions& out);
  void BecomeMember(WorkerId id, Worker& w, const std::string& reason, Actions& out);
  void Abstained(WorkerId id, Worker& w, const SeatRecord& record, Round round, Actions& out);

  // Constant after construction.
  DeadlineConfig deadline_;
  uint32_t workers_max_;
  uint32_t observer_after_;
  uint32_t chunks_;

  std::map<WorkerId, Worker> workers_;
  uint32_t connected_ = 0;
  ShareTable shares_;
  ArrivalHistory rounds_;  // of a round: the median over its members
  LocalArrivals local_rounds_;
  EngineTotals totals_;
};

}  // namespace signvote::round
