#pragma once
// Commits that arrive while the replica is fetched. The server's replica moves on during a transfer,
// so its parts come at ever later rounds; a part that is there follows with the commits received
// meanwhile, and what no later part can need any more is let go. So the replica is level when its
// last part has come, one transfer is enough however long it takes, and only as many commits are kept
// as the server applies behind those that it sends.
//
// When a commit is missing (the server sends none during transfers, or more came than could be kept)
// the parts behind stay where they are, and the server is asked for the rest afterwards.
//
// Ownership: refers to the replica; commits go to `let_go` when they are done with, each once.
// Threads:   not thread-safe.
// Failure:   what the replica's memory fails with is returned.

#include <deque>
#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "common/ids.h"
#include "worker/session/replica.h"
#include "worker/session/verdict_assembler.h"

namespace signvote {

class CatchUp {
 public:
  // Applies the commit to what is there of the replica. FAILED_PRECONDITION: it cannot be.
  using Apply = std::function<absl::Status(const CommitEvent& commit)>;
  using LetGo = std::function<void(const CommitEvent& commit)>;

  CatchUp(Apply apply, LetGo let_go) : apply_(std::move(apply)), let_go_(std::move(let_go)) {}
  ~CatchUp();
  CatchUp(const CatchUp&) = delete;
  CatchUp& operator=(const CatchUp&) = delete;

  // One that does not follow the last is of no use.
  void Add(CommitEvent commit);
  // A part that stands at `round` comes next, and none before it: what is there follows up to there,
  // as far as it can.
  absl::Status FollowTo(Round round);
  // Nothing comes any more: what is there follows all that is kept.
  absl::Status FollowAll();

  size_t kept() const { return commits_.size(); }

 private:
  const Apply apply_;
  const LetGo let_go_;
  std::deque<CommitEvent> commits_;  // of consecutive rounds
};

}  // namespace signvote
