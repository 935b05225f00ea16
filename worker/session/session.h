#pragma once
// A worker's side of the protocol: join, catch up, vote, apply, reconnect. Torch-free, gRPC behind
// the .cc, so that the trainer, the benches and other languages' bindings stand on the same code.
//
//   Session::Create → Join → { NextRound → SendChunk… → SendScalars | Abstain → WaitCommit }… →
//   Leave or finished
//
// Ownership: the caller owns the replica's memory and must keep it alive; the session touches it
// only inside Join,
//            NextRound and WaitCommit, on the calling thread (commits are applied there).
// Threads:   Join, NextRound, SendScalars, Abstain, WaitCommit, Leave: one thread at a time.
//            SendChunk: any thread, at the same time as others. Stats(), RequestDrain(): any
//            thread.
// Failure:   a lost connection is not an error: a thread of the session's own reconnects with
//            jittered exponential back-off, also while the caller computes, and gives up with
//            UNAVAILABLE after server_timeout. What the server refuses ends the session with its
//            status. Every later call then returns that status. A ballot of the open round is kept
//            and sent again after a reconnect or for a new attempt. A wait that lasts longer than
//            wait_timeout ends with DEADLINE_EXCEEDED (exit code kWaitTimeout) and the server's
//            last word on whom it waits for. What the replica's memory fails with is returned as it
//            is.

#include <cstdint>
#include <functional>
#include <memory>
#include <memory_resource>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/vote_terms.h"
#include "worker/codec/replica_memory.h"
#include "worker/direction/direction.h"

namespace signvote {

struct SessionOptions {
  std::string server;      // host:port
  std::string name;        // worker name; empty with TLS: the certificate's DNS name
  std::string token_file;  // join token; must be private
  bool insecure = false;   // plaintext
  std::string tls_ca, tls_certificate, tls_key;  // PEM paths; required unless insecure
  std::optional<RunId> run_id;                   // only this run
  Duration connect_timeout =
      std::chrono::seconds(20);  // first connection, and each state transfer's progress
  Duration server_timeout = std::chrono::minutes(10);  // a lost server is looked for this long
  Duration wait_timeout =
      std::chrono::hours(1);  // longest wait for a round to open or to be committed
  Duration finish_timeout =
      std::chrono::seconds(45);  // longest wait for the server's goodbye after the last round
  std::string model_config_json;
  std::string metrics_address;
  uint64_t message_bytes_max = 64ull << 20;
  // Where verdicts' bits are kept; thread-safe, and must outlive the session.
  std::pmr::memory_resource* bits_memory = std::pmr::new_delete_resource();
  // Called on the caller's thread for each commit that has been received, before it is applied; for
  // benches.
  std::function<void()> before_apply;
};

// What the server said when it let us in. Constant for a run.
struct RunInfo {
  RunId run_id;
  uint64_t seed = 0;
  uint64_t rounds_max = 0;
  uint64_t digest_every = 0;
  ChunkPlan plan;
  DirectionConfig direction;
};

// An open round that this worker shall vote in.
struct RoundTicket {
  Round round;
  DataStep data_step;
  Share share;
  bool probe = false;     // compute the probe gradient, if the previous replica is at hand
  bool observer = false;  // the round does not wait for this worker
  uint32_t members = 0;
};

struct BallotScalars {
  double loss = 0;
  double g_l1 = 0;
  double g_l2_squared = 0;
  std::optional<double> probe_l1;
  std::optional<double> prev_inner;
  uint64_t nonfinite_coordinates = 0;
  uint64_t samples = 0;
};

// When the round passed its stations, on the session's clock; {} where it did not (a round got from
// the past).
struct RoundTimes {
  Time opened;          // RoundOpen received
  Time first_chunk;     // first SendChunk
  Time ballot_written;  // the last byte of the ballot handed to the connection
  Time first_verdict;   // first verdict chunk received
  Time committed;       // commit received and its verdict's hash checked, before it is applied
};

// What moved the replica since the last WaitCommit or NextRound.
struct CommitOutcome {
  Round next_round;      // the replica now holds all commits before this round
  uint64_t commits = 0;  // applied; 0: finished, drained, or a fetched state took their place
  bool contiguous =
      true;  // exactly the commit of the round voted on; false after a gap or a state transfer,
             // when no previous replica and no previous verdict may be used. What Join() did is
             // neither
  bool finished = false;  // no round follows
  float stepsize = 0;     // of the last commit
  double loss = 0;        // robust mean over voters of the last commit; NaN: none
  uint32_t voters = 0;
  RoundTimes times;  // of the last commit
  const uint8_t* verdict =
      // packed verdict of the last commit, the whole model; valid until the next WaitCommit
      nullptr;
};

struct SessionStats {
  uint64_t wire_sent_bytes =
      0;  // TCP payload of the session's sockets after joining: rounds' traffic
  uint64_t wire_received_bytes = 0;
  uint64_t setup_sent_bytes = 0;  // handshakes, joins, state transfer
  uint64_t setup_received_bytes = 0;
  uint64_t rounds_voted = 0;  // ballots sent whole
  // commits whose bytes are in wire_received_bytes: not those of catching up
  uint64_t rounds_received = 0;
  uint64_t rounds_applied = 0;  // all
  uint64_t reconnects = 0;
  uint64_t state_transfers = 0;
  uint64_t verdict_mismatches =
      0;  // verdict chunks whose hash did not match the commit; fetched again
  uint64_t incarnation = 0;
  double last_apply_seconds = 0;
  double join_seconds = 0;  // Join() call to first RoundOpen
  bool connected = false;
};

class Session {
 public:
  // The failures of Create(), without the session: for programs that have long work to do before
  // they need it.
  static absl::Status CheckOptions(const SessionOptions& options, Clock* clock);
  // INVALID_ARGUMENT / PERMISSION_DENIED / FAILED_PRECONDITION for unusable options, files or
  // certificates.
  static absl::StatusOr<std::unique_ptr<Session>> Create(const SessionOptions& options,
                                                         Clock* clock);
  virtual ~Session() = default;

  virtual const std::string& name() const = 0;  // of the worker; any thread

  // Joins the run. `replica` holds this worker's own initial parameters; they are uploaded if the
  // server names this worker the uploader, else overwritten by the run's. Returns when the replica
  // is ready (not yet when a round is open). CANCELLED, and drained(), when a drain was asked for
  // first.
  virtual absl::StatusOr<RunInfo> Join(const Layout& layout, ReplicaMemory* replica) = 0;

  // Waits for a round that this worker has not voted in. nullopt: the run finished or this worker
  // was drained (finished() and drained() tell); the final digest has been sent.
  virtual absl::StatusOr<std::optional<RoundTicket>> NextRound() = 0;

  // Chunk k of the ballot of the ticket's round, plan.Bytes(k) bytes. `ballot` must stay unchanged
  // until WaitCommit returned an outcome for the round, or Leave returned. Never blocks on the
  // network.
  virtual absl::Status SendChunk(ChunkIndex k, const uint8_t* ballot) = 0;
  virtual absl::Status SendScalars(const BallotScalars& scalars) = 0;
  virtual absl::Status Abstain(AbstainReason reason) = 0;

  // Waits for the commit of the ticket's round and applies it (and any later ones that have
  // arrived). New attempts of the round get the same ballot without the caller's doing. Once a
  // drain is asked for, waits 10 s at most and then leaves with commits = 0.
  virtual absl::StatusOr<CommitOutcome> WaitCommit() = 0;

  // Leaves in good order; the session can only be destroyed afterwards. Bounded by a few seconds.
  virtual absl::Status Leave(const std::string& reason) = 0;
  // Makes NextRound return nullopt after the round in progress. Threads: any; async-signal-unsafe.
  virtual void RequestDrain(const std::string& reason) = 0;

  // The replica holds all commits before this round. nullopt: it is not the run's as of any round,
  // because a state transfer has not been completed; so after Join() when the run ended before the
  // state had come. Threads: the caller's.
  virtual std::optional<Round> replica_round() const = 0;
  virtual bool finished() const = 0;
  virtual bool drained() const = 0;
  virtual SessionStats Stats() const = 0;
};

}  // namespace signvote
