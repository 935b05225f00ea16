#pragma once
// What a session says and is told: the run, a round to vote in, a ballot's scalars, what a commit
// did. Plain values without gRPC or protobuf, for whoever stands on a session (worker/vote, other
// languages' bindings) and for the simulation.
//
// Threads: plain values.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/direction_config.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/payload_plan.h"
#include "common/vote_terms.h"

namespace signvote {

// What the worker's own model is, as it asks to join with it.
struct ModelDescription {
  // Names and shapes of the trained tensors, in the model's own order; scales, decays and places
  // are the run's to say and are not read here.
  std::vector<TensorSpec> tensors;
  // Hugging Face style config.json, a JSON object. Its canonical form without the name is the
  // model's identity; empty: none.
  std::string config_json;
  // What else makes two models differ, such as a loss's name; must equal the run's.
  std::string identity_text;
  bool can_probe = false;  // a second gradient, at the previous replica, can be computed
  // Hash of the held-out windows that can be measured; nullopt: the worker cannot evaluate.
  std::optional<uint64_t> held_out_hash;
};

// One buffer of a direction's state, as the run's server names it: for whoever reserves memory or
// keeps checkpoints.
struct RunStatePlane {
  std::string name;
  size_t element_bytes = 4;
  bool single = false;  // one element for the whole model, not one per coordinate

  bool operator==(const RunStatePlane&) const = default;
};

// Chunks whose payload is of one kind, per way.
struct PayloadKinds {
  ChunkIndex first;
  uint32_t chunks = 0;
  PayloadKind up = PayloadKind::kSigns;    // of ballots
  PayloadKind down = PayloadKind::kSigns;  // of commits

  bool operator==(const PayloadKinds&) const = default;
};

// What the server said when it let the worker in. Constant for a run, but for `main_round`.
struct RunInfo {
  RunId run_id;
  uint64_t seed = 0;  // of coins and minibatches
  // The run's tensors in the run's order, with scale and decay: coordinates are numbered through
  // it, and the replica that is attached lies in it.
  Layout layout;
  ChunkPlan plan;
  std::vector<PayloadKinds> payloads;  // in order of chunk, covering all
  PayloadPlan ballot_plan;             // of ballots: where each chunk lies
  PayloadPlan commit_plan;             // of commits' payloads
  DirectionConfig direction;           // what to sign
  std::vector<RunStatePlane> planes;   // its state
  std::string rule;                    // name of the stepsize rule, for people
  // Rounds may want ScalarKind::kProbeL1 or kProbeInner, and kChangeL1: memory for them is needed.
  bool probes = false, keeps_gradients = false;
  std::optional<double> clip_norm;      // the minibatch gradient is clipped to this l2 norm
  bool needs_x0 = false;                // the replica has x0 as a second plane
  uint32_t local_steps_max = 1;         // minibatches of a ballot that a round may ask for, at most
  std::optional<uint64_t> main_rounds;  // planned, for progress and schedules; nullopt: unknown
  uint64_t main_round = 0;              // main rounds committed when the worker was let in
  uint64_t digest_every = 0;            // rounds between digests; 0: only after the last
  uint64_t evaluate_every = 0;          // rounds between evaluations that are asked for; 0: none is
  std::string run_head;  // for a file with which a server may go on (SavedRun::head); "": not said
};

// Where a ballot's gradients start from.
enum class BallotStart : uint8_t {
  kReplica,   // the replica
  kContinue,  // local steps: where the last ones ended, with their state
  kX0,        // local steps: x0, with fresh state
};

// An open round that this worker shall vote in.
struct RoundTicket {
  Round round;
  DataStep data_step;
  Share share;                      // part of the data, and the number of the worker's coins
  std::vector<ScalarKind> wanted;   // scalars to send beside the fixed ones, in this order
  uint32_t members = 0;             // of this attempt
  bool observer = false;            // the round does not wait for this worker
  bool uncounted = false;           // the ballot warms the worker up and has weight 0
  bool evaluate = false;            // measure the held-out loss of the replica as it stands now
  bool x0_over = false;             // no round from this one on needs x0
  uint32_t local_steps = 1;         // minibatches per ballot; 1: an ordinary vote
  float eta_first = 0;              // local steps: inner stepsize of the first minibatch
  float eta_last = 0;               // local steps: of the last
  std::optional<Time> steps_until;  // local steps: take no further one after this; nullopt: all
  BallotStart start = BallotStart::kReplica;
  // Something other than the commit that the last WaitCommit reported has moved the replica since:
  // commits of rounds that went on without this worker, or a state transfer. No previous replica
  // and no previous verdict may be used. True for the first ticket after Attach().
  bool replica_moved = false;
  // A rewind was among them: every direction's state is to be set to zero before this ballot.
  bool rewound = false;

  // Local steps of a trial: the round wants scalars and no ballot.
  bool silent() const { return start != BallotStart::kReplica; }
  bool Wants(ScalarKind kind) const {
    for (const ScalarKind wanted_kind : wanted)
      if (wanted_kind == kind) return true;
    return false;
  }
};

// A held-out loss that was measured since the last ballot.
struct HeldOutReport {
  double loss = 0;       // nats per target
  double error = 0;      // its standard error
  Round round;           // commits that the measured replica held
  uint64_t windows = 0;  // hash of the windows it was measured on
};

// Sums over the worker's whole gradient of the mean loss of its minibatch.
struct BallotScalars {
  double loss = 0;          // nats (or the model's unit), mean over the minibatch
  double g_l1 = 0;          // Σ|g_i|
  double g_l2_squared = 0;  // Σ g_i²
  // In order of RoundTicket::wanted; NaN, or left away at the end: this worker cannot tell.
  std::vector<double> wanted;
  // Per tensor, in order of the layout: local steps: mean |displacement|; error feedback: mean |p|;
  // otherwise empty.
  std::vector<float> displacement_mean;
  uint64_t nonfinite_coordinates = 0;  // that cast a coin because their gradient was not finite
  uint64_t samples = 0;                // training samples in the minibatch
  uint32_t local_steps = 0;            // minibatches taken; 0: no local steps, an ordinary vote
  std::optional<HeldOutReport> held_out;
};

// When the round passed its stations, on the session's clock; {} where it did not (a round got from
// the past).
struct RoundTimes {
  Time opened;          // RoundOpen received
  Time first_chunk;     // first SendChunk
  Time ballot_written;  // the last byte of the ballot handed to the connection
  Time first_verdict;   // first verdict chunk received
  Time committed;       // commit received and its verdict's hash checked, before it is applied
  Duration apply{};     // that applying it took
};

// What moved the replica since the last WaitCommit or NextRound.
struct CommitOutcome {
  Round next_round;      // the replica now holds all commits before this round
  uint64_t commits = 0;  // applied; 0: finished, drained, or a fetched state took their place
  // Exactly the commit of the round voted on; false after a gap or a state transfer, when no
  // previous replica and no previous verdict may be used. What Attach() did is neither.
  bool contiguous = true;
  bool finished = false;  // no round follows
  // A rewind was among the commits: every direction's state is to be set to zero.
  bool rewound = false;

  // Of the last commit; meaningless when there was none.
  CommitKind kind = CommitKind::kStep;
  float stepsize = 0;
  float rho = 1;         // rescaling about x0 before the step
  float decay_step = 0;  // stepsize of the weight decay
  double loss = 0;       // robust mean over voters; NaN: none
  uint32_t voters = 0;
  uint64_t main_round = 0;  // main rounds committed so far
  DataStep next_data_step;
  bool run_done = false;  // it was the run's last
  std::string reason;     // of a rewind or of none, for people
  RoundTimes times;
  // Packed verdict of the last commit, the whole model; null unless `kind` is kStep and the payload
  // signs alone. Valid until the next WaitCommit.
  const uint8_t* verdict = nullptr;
};

struct SessionStats {
  uint64_t wire_sent_bytes = 0;  // TCP payload of the session's sockets after joining
  uint64_t wire_received_bytes = 0;
  uint64_t setup_sent_bytes = 0;  // handshakes, joins, state transfers
  uint64_t setup_received_bytes = 0;
  uint64_t rounds_voted = 0;  // ballots sent whole
  // Commits whose bytes are in wire_received_bytes: not those of catching up.
  uint64_t rounds_received = 0;
  uint64_t rounds_applied = 0;  // all
  uint64_t reconnects = 0;
  uint64_t state_transfers = 0;  // completed
  // Verdict chunks whose hash did not match the commit; fetched again.
  uint64_t verdict_mismatches = 0;
  uint64_t incarnation = 0;
  double last_apply_seconds = 0;
  double join_seconds = 0;  // Join() call to first RoundOpen
  bool connected = false;
};

}  // namespace signvote
