#pragma once
// What a worker says to each message of its server: who it is, where its replica stands, which
// commits it waits for, under which attempt its ballot goes, and when both have parted.
//
// It follows one run over any number of connections, one after the other:
//
//   Connected → [welcome: Joined] → {commits due, attempts opened, transfers wanted}… → Disconnected
//
// and knows three ways of following commits:
//
//   kNothing    no replica, and none on its way: commits are passed over
//   kFetching   a state transfer runs: commits are taken from wherever they begin, and a gap in them
//               is no fault, because Ready says afterwards where the replica stands
//   kFollowing  each commit from `next()` on is due, in order and without gaps
//
// Threads: not thread-safe, and none of its own: no lock, no socket, no clock. A worker's link calls
//          it under its lock; the simulation calls it directly.
// Failure: a status ends the connection. FAILED_PRECONDITION and INVALID_ARGUMENT: the server cannot
//          be worked with; ABORTED: a new connection may mend it.

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/types.h"

namespace signvote {

struct FollowerOptions {
  std::string name;
  std::string token;
  std::string metrics_address;
  std::optional<RunId> run_id;  // only this run
  ModelDescription model;
  bool wants_run_state = false;  // the replica is saved, with what a server needs to go on
};

// Under which vote a ballot is sent.
struct VoteId {
  RunId run_id;
  Epoch epoch;
  Attempt attempt;

  bool operator==(const VoteId&) const = default;
};

// ---- what is to be done, in order

// Send this.
struct SayAction {
  v1::WorkerMessage message;
};
// The server has let this worker in.
struct JoinedAction {
  bool first = false;  // the run was not known before
};
// Fetch the state, or upload it, with this ticket; then FollowFrom().
struct TransferAction {
  enum class Kind { kFetch, kUpload } kind = Kind::kFetch;
  std::string ticket;
  bool differs = false;  // the server found that the replica is not the run's
};
// This commit is due: put it together, then Took(), or Mismatched() when it cannot be.
struct CommitDueAction {};
// An attempt is open: a ballot that is kept for its round goes again, under this vote.
struct OpenedAction {
  RoundTicket ticket;
  VoteId vote;
};
// What was open is so no longer, though the connection stays.
struct ClosedAction {};
struct FinishAction {
  Round rounds;
};
struct DrainAction {
  std::string reason;
};
// This connection cannot mend what is missing: it ends with this status, and the next one does.
struct RejoinAction {
  absl::Status why;
};
// For people. The server may take its time from here on, since it says why.
struct NoticeAction {
  std::string text;
};

using FollowerAction =
    std::variant<SayAction, JoinedAction, TransferAction, CommitDueAction, OpenedAction,
                 ClosedAction, FinishAction, RejoinAction, DrainAction, NoticeAction>;

class Follower {
 public:
  enum class Following { kNothing, kFetching, kFollowing };

  explicit Follower(FollowerOptions options);

  // ---- the connection
  // A new connection begins. Returns its first message, the Join.
  v1::WorkerMessage Connected();
  // It has ended.
  void Disconnected();
  // Every message but verdict chunks. `now` is for what a message says in time from now.
  absl::StatusOr<std::vector<FollowerAction>> Handle(const v1::ServerMessage& message, Time now);

  // ---- commits
  // A verdict chunk of this round is worth keeping. INVALID_ARGUMENT: it came before the welcome,
  // or is another run's.
  absl::StatusOr<bool> Wants(const RunId& run_id, Round round) const;
  // The commit that was due is put together, whole and right.
  void Took(Round round, Epoch epoch);
  // It is not, and cannot be: the server shall send it again over a new connection; when that does
  // not help, the whole state. Returns why this connection ends; OK while fetching, when the commit
  // is only passed over.
  absl::Status Mismatched(Round round, const std::string& why);

  // ---- the replica
  // A state transfer is done: the replica holds all commits before `round`, and the caller has those
  // of [round, next) at hand. Returns what to say to the server.
  v1::WorkerMessage FollowFrom(Round round, Round next);
  // A digest of the replica before `round` is said over this connection.
  void SaidDigest(Round round);
  // Nothing but the goodbye follows.
  void SayGoodbye() { goodbye_ = true; }

  // ---- what is known
  const std::string& name() const { return options_.name; }
  bool run_known() const { return run_.has_value(); }
  // REQUIRES: run_known().
  const RunInfo& run() const { return *run_; }
  bool welcomed() const { return welcomed_; }            // on this connection
  bool ever_welcomed() const { return ever_welcomed_; }  // by a server of this run
  bool goodbye() const { return goodbye_; }
  Following following() const { return following_; }
  // Next commit that is due. nullopt: nothing is followed, or any that begins.
  std::optional<Round> next() const { return next_; }
  uint64_t incarnation() const { return incarnation_; }
  // An attempt is open on this connection.
  bool open() const { return open_.has_value(); }
  // Under which vote a ballot of `round` goes now. nullopt: it waits for the round's next opening.
  std::optional<VoteId> VoteOf(Round round) const;
  bool finish_seen() const { return finish_rounds_.has_value(); }
  // This connection has said that the run is finished, to a worker that is not behind its commits.
  bool finish_current() const { return finish_current_; }
  // The run is over, and this connection has carried the digest that the server waits for: when it
  // ends in good order, nothing is left to say.
  bool parted() const;

 private:
  // What a ballot may be sent for.
  struct OpenTicket {
    Round round;
    Attempt attempt;
  };

  absl::Status OnWelcome(const v1::Welcome& welcome, std::vector<FollowerAction>* actions);
  absl::Status OnCommit(const v1::Commit& commit, std::vector<FollowerAction>* actions);
  absl::Status OnRoundOpen(const v1::RoundOpen& open, Time now,
                           std::vector<FollowerAction>* actions);
  void Forget(Following following);
  // Commits before `round` are due. One that was passed over while the state was being fetched is
  // not sent again on the same connection.
  bool Behind(Round round) const;
  absl::Status Missing(const std::string& what) const;  // REQUIRES: Behind()

  // Constant after construction.
  const FollowerOptions options_;

  // Of the run.
  std::optional<RunInfo> run_;
  bool ever_welcomed_ = false;
  bool goodbye_ = false;
  Following following_ = Following::kNothing;
  std::optional<Round> next_;  // Invariant: set when following_ is kFollowing
  Epoch commit_epoch_;         // of the last commit that was taken
  std::optional<Round> finish_rounds_;
  int mismatches_in_a_row_ = 0;

  // Of the connection.
  bool welcomed_ = false;
  Epoch epoch_;
  uint64_t incarnation_ = 0;
  std::string ticket_;
  std::optional<OpenTicket> open_;
  bool finish_current_ = false;
  std::optional<Round> digest_said_;
};

}  // namespace signvote
