#pragma once
// What goes into the round engine (events) and what comes out of it (actions). Plain values, no
// behaviour.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/local_steps.h"
#include "common/vote_terms.h"
#include "server/stepsize/types.h"

namespace signvote::round {

// A worker that ever joined this run; the engine's number for a name. Chosen by the caller, stable
// for a name, also over restarts of the run.
using WorkerId = StrongInt<struct WorkerIdTag, uint32_t>;

enum class Role : uint8_t { kMember, kObserver };

// ---- events -------------------------------------------------------------------------------------

// A worker that is not ready yet makes progress: it joined, or it uploads or fetches the state.
// Whoever waits for workers waits on; nothing else changes.
struct WorkerArriving {
  WorkerId worker;
};
// The worker is connected and its replica holds every commit before `round`, or can be brought
// there by the caller from what it keeps in memory. It is admitted at the next boundary.
struct WorkerReady {
  WorkerId worker;
  Incarnation incarnation;
  std::string name;
  // It had no replica of this run, so that its direction's state cannot be of this run either.
  bool fetched = false;
};
// The stream broke, or the caller closed it.
struct WorkerLost {
  WorkerId worker;
  Incarnation incarnation;
};
// The worker says that it leaves after what it has sent; nobody waits for it from now on.
struct WorkerLeaves {
  WorkerId worker;
  Incarnation incarnation;
};
// A whole chunk of a ballot lies checked in memory.
struct BallotChunkIn {
  WorkerId worker;
  Incarnation incarnation;
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
};
struct ScalarsIn {
  WorkerId worker;
  Incarnation incarnation;
  Round round;
  Attempt attempt;
  WorkerScalars scalars;
  // From the RoundOpen to when nothing was left but to send, as the worker says; 0: it does not.
  Duration compute{};
};
// No further chunk of this ballot will come; those sent stand.
struct AbstainIn {
  WorkerId worker;
  Incarnation incarnation;
  Round round;
  Attempt attempt;
  AbstainReason reason;
};
// The tally of a chunk that a CloseChunk asked for. One of an older attempt is counted and dropped.
struct ChunkTallied {
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
  uint32_t counted = 0;   // ballots in the verdict
  uint64_t checksum = 0;  // XXH3-64 of the verdict's payload
};
// The commit of this round, proposed by a CommitRound, will survive what the durability policy says
// it survives. The next round opens only now.
struct CommitDurable {
  Round round;
};
// Whether the pipeline can take a further commit, from now on; true until said otherwise. Asked
// before a round opens: a round that is open has its place. So the caller says false before the
// CommitDurable after which no round shall open.
struct ProposalRoom {
  bool room = true;
};
// Digest of a worker's replica after all commits before `round`.
struct WorkerDigestIn {
  WorkerId worker;
  Incarnation incarnation;
  Round round;
  uint64_t digest = 0;
};
// Digest of the master replica after all commits before `round` (from the applier).
struct MasterDigestIn {
  Round round;
  uint64_t digest = 0;
};
struct Tick {};
struct PauseRequested {};
struct ResumeRequested {};
struct DrainRequested {
  WorkerId worker;
};
// For the rest of the run. One that the engine has never heard of is for the caller to keep out.
struct EvictRequested {
  WorkerId worker;
};
// The operator stops the server (SIGTERM): no further round opens; the run ends after the open one,
// at its deadline, or after EngineConfig::stop_wait, whichever is first.
struct StopRequestedEvent {};

using EngineEvent =
    std::variant<WorkerArriving, WorkerReady, WorkerLost, WorkerLeaves, BallotChunkIn, ScalarsIn,
                 AbstainIn, ChunkTallied, CommitDurable, ProposalRoom, WorkerDigestIn,
                 MasterDigestIn, Tick, PauseRequested, ResumeRequested, DrainRequested,
                 EvictRequested, StopRequestedEvent>;

// ---- actions ------------------------------------------------------------------------------------

struct Seat {
  WorkerId worker;
  Incarnation incarnation;
  Share share;
  Role role = Role::kMember;
  // It is asked for so many of OpenRound::wanted, from the first on.
  size_t wanted = 0;
  bool uncounted = false;  // its ballot warms it up: nobody waits for it, and it has weight 0
  // Local steps: it takes no further minibatch after this long, so that what it has comes in time;
  // nullopt: it takes all.
  std::optional<Duration> steps_until = std::nullopt;
};
// The round waits for the ballot of this seat, and it has weight.
inline bool IsCounted(const Seat& seat) { return seat.role == Role::kMember && !seat.uncounted; }

// Tell every seat that this round (or this attempt of it) is open. Seats hold everybody who is
// ready, by WorkerId. The deadline counts from the time of the Step that said so.
struct OpenRound {
  Round round;
  Attempt attempt;
  bool reopening = false;  // attempt > 0: what was sent to earlier attempts counts no more
  DataStep data_step;
  std::vector<ScalarKind> wanted;  // scalars to send, in this order
  uint32_t members = 0;
  uint32_t quorum = 0;
  std::optional<Duration> deadline;  // from now on; nullopt when off
  bool x0_over = false;              // x0 was needed, and is not from this round on
  std::vector<Seat> seats;
  LocalSteps local = {};  // silent: scalars are all that is wanted
};
// Tally these ballots of the chunk and send its verdict to everybody who follows; answer with
// ChunkTallied. Slots stay untouched until the last tally of the attempt is back.
struct CloseChunk {
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
  std::vector<WorkerId> voters;  // in order of WorkerId, not empty
};
struct ChunkCount {
  uint32_t counted = 0;   // ballots counted
  uint64_t checksum = 0;  // of the verdict's payload
  bool operator==(const ChunkCount&) const = default;
};
// Whose scalars they are.
struct ScalarsSource {
  WorkerId worker;
  Share share;  // of the data, in that round
  bool operator==(const ScalarsSource&) const = default;
};
// What the rule says of itself.
struct RuleWords {
  std::string warning;  // what a person should mend, as of its last verdict; empty: nothing
  RaceProgress race;    // as it said last
  // its state after this decision, by name, for logs and metrics
  std::vector<std::pair<std::string, double>> state;
};
// How a round took its minibatches.
struct LocalRound {
  LocalSteps plan;  // as it was opened with
  // Of a step of more than one: S_k per tensor, and Σ η(h). Else empty, and 0.
  std::vector<float> scales;
  float decay_step = 0;
  uint64_t minibatches = 0;  // that all rounds so far asked of a worker, with this one
};
// Robust means over the voters.
struct GradientMeans {
  std::optional<double> l1;       // of ‖g_j‖₁
  std::optional<double> density;  // of ‖g_j‖₁² / (d·‖g_j‖₂²)
};
// The round's law. The caller proposes it to the pipeline and answers with CommitDurable.
// Tallies of the round that are not in `chunks` are void.
struct CommitRound {
  Round round;
  Attempt attempt;
  CommitKind kind = CommitKind::kStep;
  // ≥ 0; of kind none: the last one. With local steps the inner stepsize that the round began with.
  float gamma = 0;
  float rho = 1;
  LocalRound local;
  DataStep data_step;       // the minibatch that was voted on
  DataStep next_data_step;  // the minibatch of the next round
  bool main_round = false;
  uint64_t main_rounds = 0;  // committed so far, with this one
  bool run_done = false;     // no further round; FinishRun follows once this one is durable
  std::string reason;        // a few words for the log, of rule or engine
  RuleWords rule;

  std::vector<ChunkCount> chunks;  // by chunk; empty unless kind is step
  std::vector<WorkerId> voters;    // workers with at least one counted chunk, by WorkerId
  // what the rule saw, for log and metrics: scalars[i] came from scalars_from[i]
  std::vector<ScalarKind> asked;
  std::vector<ScalarsSource> scalars_from;
  std::vector<WorkerScalars> scalars;
  std::optional<double> loss;  // robust mean of the voters' losses
  GradientMeans gradient;
  uint32_t members = 0;      // members when the attempt opened
  uint32_t abstentions = 0;  // members whose ballot does not count as given (Engine, "Given")
  Duration opened_for{};     // from OpenRound of the first attempt to this commit
  Duration wait{};           // from the first complete ballot to this commit
  // workers and applier shall digest their replica after this commit
  bool digest_due = false;
};
// Close the worker's stream with this status.
struct Disconnect {
  WorkerId worker;
  Incarnation incarnation;
  absl::Status status;
};
// Ask the worker to finish what it does and leave.
struct AskToDrain {
  WorkerId worker;
  Incarnation incarnation;
};
// The worker's replica differs: it must fetch the state again.
struct Resync {
  WorkerId worker;
  Incarnation incarnation;
  Round round;
};

// What changes the run's state between commits. Nothing to do but to remember it: EngineState holds
// it already.
struct ShareGiven {
  WorkerId worker;
  Share share;
};
struct ShareFreed {
  WorkerId worker;
  Share share;
};
struct RoleChanged {
  WorkerId worker;
  Role role = Role::kMember;
  std::string reason;
};
struct EvictionMade {
  WorkerId worker;
};
struct PauseSet {
  bool paused = false;
};

// The last round is committed: tell everybody; each live worker answers with the digest of its
// final replica. Said once; the caller repeats it to a worker that becomes ready later. The caller
// owes the master's digest of this round.
struct FinishRun {
  Round rounds;  // number of committed rounds, of whatever kind
};
// The process ends: OK after FinishRun and the digests (or the linger time); CANCELLED: stopped;
// ABORTED: diverged, or the rule gave up; DEADLINE_EXCEEDED: wait_timeout; DATA_LOSS: bad replica.
struct EndRun {
  absl::Status status;
};
enum class NoticeLevel { kInfo, kWarning, kError };
// A state change or a wait that a person may want to know, with the names of those it is about.
// Sent once per change.
struct Notice {
  NoticeLevel level = NoticeLevel::kInfo;
  std::string text;
  // Whose doing it is, where a worker can make such notices as often as it likes.
  std::optional<WorkerId> of = std::nullopt;
};

using Action =
    std::variant<OpenRound, CloseChunk, CommitRound, Disconnect, AskToDrain, Resync, ShareGiven,
                 ShareFreed, RoleChanged, EvictionMade, PauseSet, FinishRun, EndRun, Notice>;
using Actions = std::vector<Action>;

}  // namespace signvote::round
