#pragma once
// What goes into the round engine (events) and what comes out of it (actions). Plain values, no
// behaviour.

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/vote_terms.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote::round {

// A worker that ever joined this run; the engine's number for a name. Chosen by the caller, stable
// for a name.
using WorkerId = StrongInt<struct WorkerIdTag, uint32_t>;

// ---- events -------------------------------------------------------------------------------------

// The worker is connected and its replica holds every commit before `round`, or can be brought
// there by the caller from what it keeps in memory. It is admitted at the next boundary.
struct WorkerReady {
  WorkerId worker;
  Incarnation incarnation;
  std::string name;
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
};
// No further chunk of this ballot will come; those sent stand.
struct AbstainIn {
  WorkerId worker;
  Incarnation incarnation;
  Round round;
  Attempt attempt;
  AbstainReason reason;
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
// The operator stops the server (SIGTERM): no further round opens; the run ends after the open one
// or at the deadline.
struct StopRequestedEvent {};

using Event = std::variant<WorkerReady, WorkerLost, WorkerLeaves, BallotChunkIn, ScalarsIn,
                           AbstainIn, WorkerDigestIn, MasterDigestIn, Tick, PauseRequested,
                           ResumeRequested, DrainRequested, EvictRequested, StopRequestedEvent>;

// ---- actions ------------------------------------------------------------------------------------

enum class Role { kMember, kObserver };

struct Seat {
  WorkerId worker;
  Incarnation incarnation;
  Share share;
  Role role = Role::kMember;
};

// Tell every seat that this round (or this attempt of it) is open. Seats hold everybody who is
// ready.
struct OpenRound {
  Round round;
  Attempt attempt;
  DataStep data_step;
  bool probe = false;
  uint32_t quorum = 0;
  std::optional<Duration> deadline;  // from now on; nullopt when off or not known yet
  std::vector<Seat> seats;
};
// Tally these ballots of the chunk and send its verdict to everybody who follows.
struct CloseChunk {
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
  std::vector<WorkerId> voters;  // in order of WorkerId
};
// The round's law. The caller adds the verdict's hash, keeps it in memory for those who catch up,
// sends it, and hands it to the applier.
struct CommitRound {
  Round round;
  Attempt attempt;
  DataStep data_step;  // the minibatch that was voted on
  StepsizeDecision stepsize;
  std::vector<uint32_t> counted;  // ballots counted, per chunk
  std::vector<WorkerId> voters;   // workers with at least one counted chunk
  // what the rule saw, for log and metrics
  std::vector<std::pair<WorkerId, WorkerScalars>> scalars;
  std::optional<double> loss;     // robust mean of the voters' losses
  std::optional<double> g_l1;     // robust mean of ‖g_j‖₁
  std::optional<double> density;  // robust mean of ‖g_j‖₁² / (d·‖g_j‖₂²)
  uint32_t members = 0;           // members when the attempt opened
  uint32_t abstentions = 0;       // members without any counted chunk
  Duration opened_for{};          // from OpenRound of the first attempt to this commit
  Duration wait{};                // from the first complete ballot to this commit
  // workers and applier shall digest their replica after this commit
  bool digest_due = false;
};
struct ChangeRole {
  WorkerId worker;
  Role role;
  std::string reason;
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
// The last round is committed: tell everybody; each live worker answers with the digest of its
// final replica. Said once; the caller repeats it to a worker that becomes ready later.
struct FinishRun {
  Round rounds;  // number of committed rounds
};
// The process ends: OK after FinishRun and the digests (or the linger time), else why.
struct EndRun {
  absl::Status status;
};
enum class NoticeLevel { kInfo, kWarning, kError };
// A state change or a wait that a person may want to know, with the names of those it is about.
// Sent once per change.
struct Notice {
  NoticeLevel level = NoticeLevel::kInfo;
  std::string text;
};

using Action = std::variant<OpenRound, CloseChunk, CommitRound, ChangeRole, Disconnect, AskToDrain,
                            Resync, FinishRun, EndRun, Notice>;
using Actions = std::vector<Action>;

}  // namespace signvote::round
