#pragma once
// The round engine: who votes, until when, what is committed. The only place that decides.
//
// A pure state machine: Step(now, event) → actions. No thread, clock, file, socket or randomness,
// so that thousands of seeded simulations of crashes, losses, duplicates and reordering run in
// seconds (tests/sim). The caller carries the actions out in order, before the next event.
//
// Phases, and what leads from one to the next ("next" is decided by Advance(): the first line of
// its list that holds):
//   kWaitingForWorkers  enough are ready → kRoundOpen; pause → kPaused; wait_timeout → kEnded.
//                       A run that is taken up waits for those who were there, return_wait at most
//   kRoundOpen          all chunks tallied, scalars there or overdue → kCommitting, or kEnded when the
//                       rule's answer is none that a commit can carry out;
//                       some chunk has no ballot → next attempt, then a commit of kind none;
//                       the quorum cannot be reached → next attempt, or kWaitingForWorkers;
//                       wait_timeout → kEnded; stop → kEnded when its time is over
//   kCommitting         CommitDurable → next; stop → kEnded when its time is over
//   kWaitingForRoom     ProposalRoom{true} → next; pause → kPaused
//   kBackingOff         time → next; pause → kPaused
//   kPaused             resume → next
//   kFinishing          all final digests, or linger → kEnded
//   kEnded              for ever
//   next: diverged, or the rule gave up → kEnded; run done → kFinishing; stopping, or no step for
//         wait_timeout → kEnded; paused → kPaused; after a round without a step → kBackingOff; no room
//         → kWaitingForRoom; too few workers → kWaitingForWorkers; else kRoundOpen
// A stop ends every phase but kRoundOpen, kCommitting and kFinishing at once, and those within
// EngineConfig::stop_wait for what is open and 2 s for all that follows: its tally, its commit, and the
// digests of the last round.
//
// Warm-in: a worker that joins a running run without a replica of it lacks its direction's state. For
// warm_in_rounds rounds its ballots have weight 0 and nobody waits for them, unless fewer than a quorum
// of all members would be left: then everybody counts. Who is lost meanwhile and comes back with its
// replica has the rest of them before it. At the start, after a loss of all and after a rewind nobody has
// a state that others lack.
//
// Local steps: a round may ask for several minibatches, and its deadline grows with them. In a silent
// one, of a trial of stepsizes, scalars are all that is wanted: there is one chunk, which they stand for,
// and nothing is tallied. A round that was voted on and of which no worker says how far it went closes
// without a step.
//
// Given: a ballot counts as given when 90 % of its chunks were counted and its scalars came; else
// the round is an abstention of its member, and what was counted stays counted.
//
// Threads:    thread-compatible; one thread drives it.
// Invariants: commits are gap-free; a (round, attempt, chunk) is closed at most once; a worker is
// counted at most once per (round, attempt, chunk); members and quorum change only when an attempt
// opens; at most one commit is proposed and not durable.
// Cost:       an event is O(1), amortised over the chunks that came; what changes a seat's presence
// is O(log members); opening and committing are O(members + chunks).

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "server/round/attempt.h"
#include "server/round/config.h"
#include "server/round/course.h"
#include "server/round/digest_board.h"
#include "server/round/members.h"
#include "server/round/recent_openings.h"
#include "server/round/state.h"
#include "server/round/types.h"
#include "server/round/view.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote::round {

class Engine {
 public:
  // The engine of a run that stands at `state`; EngineState{} is a new run. It starts waiting for
  // workers at `now`. INVALID_ARGUMENT: a config value is out of range, or the state is of another
  // rule; DATA_LOSS: the rule's state is damaged.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(EngineConfig config,
                                                        std::unique_ptr<StepsizeRule> rule,
                                                        const EngineState& state, Time now);

  // Times never go back. Events of past rounds, attempts or incarnations are counted and ignored,
  // never an error. Deadlines act in Tick events only, so ballots that lie in the caller's queue
  // before the Tick are still in time. After EndRun every event is ignored.
  Actions Step(Time now, const EngineEvent& event);
  // When a Tick could next change something; nullopt: only another event can. The caller ticks at
  // or after it, and a Tick at it always changes something: no caller can spin.
  std::optional<Time> NextTick() const;
  EngineView View(Time now) const;
  // Parts of it that cost next to nothing.
  Phase phase() const { return phase_; }
  size_t ready() const { return members_.ready(); }  // workers
  uint32_t ready_wanted() const;  // as many must be, for the next attempt to open
  // Who was there when the run was left, and has not come back; nobody once it has waited for them.
  std::vector<std::string> awaited() const;

  // What an engine in another process needs to go on from here: with the same events it then gives
  // the same actions as this one would after losing every worker, but that it says a warning of the
  // rule again. While a commit is not durable the state is the one after it.
  // REQUIRES: no attempt is open: phase is not kRoundOpen.
  EngineState State() const;
  // Whether x0 was needed, and is not from the next round to open on.
  bool x0_over() const { return course_.x0_over(round_); }

 private:
  Engine(EngineConfig config, Course course, const EngineState& state, Time now);

  // ---- events
  void On(const WorkerArriving& e);
  void On(const WorkerReady& e);
  void On(const WorkerLost& e);
  void On(const WorkerLeaves& e);
  void On(const BallotChunkIn& e);
  void On(const ScalarsIn& e);
  void On(const AbstainIn& e);
  void On(const ChunkTallied& e);
  void On(const CommitDurable& e);
  void On(const ProposalRoom& e);
  void On(const WorkerDigestIn& e);
  void On(const MasterDigestIn& e);
  void On(const Tick& e);
  void On(const PauseRequested& e);
  void On(const ResumeRequested& e);
  void On(const DrainRequested& e);
  void On(const EvictRequested& e);
  void On(const StopRequestedEvent& e);

  // ---- between rounds
  void Advance();
  // The next round is held back by what is no matter of the workers: kPaused or kWaitingForRoom.
  void Hold(Phase phase);
  // It is held back no longer: the time of it was no time without a step.
  void GoOn();
  // Nothing is left to vote on.
  bool Over() const { return course_.run_done() || course_.diverged() || !course_.failure().ok(); }
  void OpenOrWait();
  // The worker is waited for no longer.
  void NoLongerAwaited(WorkerId worker);
  void Open();
  uint32_t QuorumOf(uint32_t members) const;
  // Everybody counts where too few would be left.
  void CountIfNeeded(std::vector<Seat>& seats) const;

  // ---- one attempt
  // The seat that this message speaks for in the open attempt.
  template <typename Message>
  std::optional<uint32_t> SeatFor(const Message& e) const;
  // Somebody is gone, or leaves.
  void AfterDeparture(WorkerId worker, Incarnation incarnation, Presence presence);
  void Progress();
  void CloseWithoutBallot();
  void Reopen(const std::string& why);
  // Opens the round again with those who became ready since, when it is past its deadline and waits
  // for the silent.
  bool ReopenForTheReady();
  Time ScalarsUntil() const;
  bool ScalarsSettled() const;
  void Commit(CourseEnd end);
  // How far the step goes, of a round with local steps that was voted on: as a verdict it ends only where
  // some worker says it.
  CourseEnd TakeLengths(CommitRound& commit) const;
  // Scalars of a round that is over tell how long their ballot took.
  void LearnFromLate(const ScalarsIn& e);
  // What comes after the CommitRound in the actions: reports, roles, arrivals.
  void Account(const OpenAttempt& attempt, CourseEnd end);
  // Acts on what time has passed for in the open attempt.
  void PassTime();

  // ---- digests and the end
  void CheckDigests();
  void Finish();
  void CheckFinished();
  void End(absl::Status status);
  absl::Status Stopped() const;
  absl::Status Damaged(Round round, const std::vector<WorkerId>& majority);

  void Stale() { ++members_.totals().stale_messages; }
  void Note(NoticeLevel level, std::string text, std::optional<WorkerId> of = std::nullopt);
  std::string Silent() const;

  // Constant after construction.
  const EngineConfig config_;

  Course course_;
  Members members_;
  DigestBoard digests_;

  Time now_;
  Phase phase_ = Phase::kWaitingForWorkers;
  Round round_;                       // the next to commit
  Attempt attempt_;                   // of that round: the open one, or the next to open
  std::optional<OpenAttempt> open_;   // Invariant: set exactly while phase_ is kRoundOpen
  std::optional<Time> first_opened_;  // of the round's first attempt
  uint32_t reopenings_ = 0;           // of the round, for want of ballots
  RecentOpenings openings_;

  Time attempt_until_;  // of the open attempt, whatever comes
  struct Waiting {
    Time since;  // for workers
    // Who was there when the run was left, and has not come back; empty from returning_until on.
    std::set<WorkerId> returning;
    Time returning_until;
  } waiting_;
  // First opening of the rounds without a verdict, while in a row; later by what held rounds back.
  std::optional<Time> stepless_since_;
  Time held_since_;  // of Hold()
  Time back_off_until_;
  Time finish_until_;
  // Invariant: set only while stopping_. What is under way has until stop_until_, and all that can yet
  // follow it until stop_end_.
  std::optional<Time> stop_until_, stop_end_;
  bool stopping_ = false;
  bool paused_ = false;
  bool room_ = true;
  bool room_noticed_ = false;  // that the applier is late was said, and it has been late since

  Actions out_;
};

}  // namespace signvote::round
