#pragma once
// A worker's side of the protocol: join, catch up, vote, apply, reconnect. Torch-free, gRPC behind
// the .cc, so that worker/vote, the benches and other languages' bindings stand on the same code.
//
//   Session::Create → Join → Attach → { NextRound → SendChunk… → SendScalars | Abstain →
//   WaitCommit }… → Leave or finished
//
// Ownership: the caller owns the replica's memory and must keep it alive; the session touches it
//            only inside Attach, NextRound and WaitCommit, on the calling thread (commits are
//            applied there).
// Threads:   Join, Attach, NextRound, SendScalars, Abstain, WaitCommit, Leave: one thread at a
//            time. SendChunk: any thread, at the same time as others. Stats(), RequestDrain(): any
//            thread. Nothing here is shared between sessions of one process.
// Failure:   a lost connection is not an error: a thread of the session's own reconnects with
//            jittered exponential back-off, also while the caller computes, and gives up with
//            UNAVAILABLE after server_timeout. What the server refuses ends the session with its
//            status. Every later call then returns that status. A ballot of the open round is kept
//            and sent again after a reconnect or for a new attempt. A wait that lasts longer than
//            wait_timeout ends with DEADLINE_EXCEEDED (exit code kWaitTimeout) and the server's
//            last word on whom it waits for. What the replica's memory fails with is returned as it
//            is. Calls out of order, or with arguments that do not fit, are FAILED_PRECONDITION or
//            INVALID_ARGUMENT and change nothing.
// Fork:      a child process that inherits a session may destroy it or exit; it touches neither the
//            connection nor the thread, which are the parent's.

#include <functional>
#include <initializer_list>
#include <memory>
#include <memory_resource>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/log.h"
#include "worker/codec/replica_memory.h"
#include "worker/session/types.h"

namespace signvote {

// Where a session's log lines go. Called from any of its threads, never under a lock of its own.
using SessionLog = std::function<void(LogLevel level, std::string_view message,
                                      std::initializer_list<LogField> fields)>;

struct SessionOptions {
  std::string server;      // host:port
  std::string name;        // worker name; empty with TLS: the certificate's DNS name
  std::string token_file;  // join token; must be private
  bool insecure = false;   // plaintext
  std::string tls_ca, tls_certificate, tls_key;  // PEM paths; required unless insecure
  std::optional<RunId> run_id;                   // only this run
  // First connection, and each state transfer's progress.
  Duration connect_timeout = std::chrono::seconds(20);
  Duration server_timeout = std::chrono::minutes(10);  // a lost server is looked for this long
  // Longest wait for a round to open or to be committed.
  Duration wait_timeout = std::chrono::hours(1);
  // Longest wait for the server's goodbye after the last round.
  Duration finish_timeout = std::chrono::seconds(45);
  // Pause before the state is fetched again because the last transfer came to nothing; doubles, up to
  // 30 s.
  Duration transfer_backoff = std::chrono::seconds(1);
  std::string metrics_address;  // host:port of the worker's own HTTP port, for people
  // The replica is saved in files with which a server may go on: RunInfo::run_head and run_state() are
  // asked for, some kilobytes a round.
  bool wants_run_state = false;
  // Where verdicts' bits are kept; thread-safe, and must outlive the session.
  std::pmr::memory_resource* bits_memory = std::pmr::new_delete_resource();
  // Called on the caller's thread for each commit that has been received, before it is applied; for
  // benches.
  std::function<void()> before_apply;
  // Called on the caller's thread before a state transfer, which writes over the replica, while that is
  // the run's as of this round (replica_round()): whoever wants to keep it as it is copies it now. It may
  // take its time. Until the state has come whole, which may be never, the replica is of no round.
  std::function<void(Round replica)> before_transfer;
  // Asked on the caller's thread, about ten times a second, while a call waits or a state transfer
  // runs. True: the call returns CANCELLED at once, having changed nothing but that a transfer in
  // progress is given up (a later call begins it anew). For languages that look for signals only
  // where they are asked to. Empty: waits are ended by events alone.
  std::function<bool()> interrupted;
  // Empty: common/log.h.
  SessionLog log;
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

  // Asks to be let into the run with this model and returns what the run is, as soon as the server
  // has said it. The replica is then laid out by RunInfo::layout, whatever the model's own order.
  // FAILED_PRECONDITION: the run's tensors are not the model's; the message names the first that
  // differs. CANCELLED, and drained(), when a drain was asked for first.
  virtual absl::StatusOr<RunInfo> Join(const ModelDescription& model) = 0;

  // Hands over the replica, which holds this worker's own initial parameters in the order of
  // RunInfo::layout: they are uploaded if the server named this worker the uploader, else
  // overwritten by the run's. Where the run needs x0 the memory keeps it as a second plane.
  // Returns when the replica is ready (not yet when a round is open), or when the run has ended
  // before that: replica_round() tells. CANCELLED, and drained(), when a drain was asked for first;
  // a state transfer under way is broken off for it. INVALID_ARGUMENT: the memory has not the
  // layout's size, or cannot keep the x0 that the run needs.
  virtual absl::Status Attach(ReplicaMemory* replica) = 0;

  // Waits for a round that this worker has not voted in. nullopt: the run finished or this worker
  // was drained (finished() and drained() tell); the final digest has been sent. An error with one
  // of kRunEnds (common/exit_codes.h): the run ended so, if need be by the last digests.
  virtual absl::StatusOr<std::optional<RoundTicket>> NextRound() = 0;

  // Chunk k of the ballot of the ticket's round, RunInfo::ballot_plan.Bytes(k, 1) bytes (of a dense chunk
  // that is more than its bits), which must not change while anybody but the caller shares them: the
  // session does until WaitCommit returned an outcome for the round, and the network until it has sent or
  // dropped the last message of it, on a slow one later than that. Never blocks on the network.
  virtual absl::Status SendChunk(ChunkIndex k, std::shared_ptr<const uint8_t> ballot) = 0;
  // After the last chunk. INVALID_ARGUMENT: more wanted scalars than the ticket wants, or
  // displacement means that are not one per tensor.
  virtual absl::Status SendScalars(const BallotScalars& scalars) = 0;
  virtual absl::Status Abstain(AbstainReason reason) = 0;

  // Waits for the commit of the ticket's round and applies it (and any later ones that have
  // arrived). New attempts of the round get the same ballot without the caller's doing. Once a
  // drain is asked for, waits 10 s at most (2 s without a connection) and then leaves with
  // commits = 0.
  virtual absl::StatusOr<CommitOutcome> WaitCommit() = 0;

  // Leaves in good order; the session can only be destroyed afterwards. Bounded by a few seconds.
  virtual absl::Status Leave(const std::string& reason) = 0;
  // Makes NextRound return nullopt after the round in progress, and breaks off a state transfer.
  // Threads: any; async-signal-unsafe.
  virtual void RequestDrain(const std::string& reason) = 0;

  // The replica holds all commits before this round. nullopt: it is not the run's as of any round,
  // because a state transfer has not been completed (so after Attach() when the run ended before the
  // state had come), or because the server found that it differs. Threads: the caller's.
  virtual std::optional<Round> replica_round() const = 0;
  // Where the run stands at replica_round(), as the server said it (SavedRun::after). "": it did not,
  // as before the first commit, behind a state transfer, and behind most commits that are caught up on.
  // Threads: the caller's.
  virtual std::string run_state() const = 0;
  virtual bool finished() const = 0;
  virtual bool drained() const = 0;
  virtual SessionStats Stats() const = 0;  // any thread
};

}  // namespace signvote
