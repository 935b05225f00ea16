#pragma once
// What has moved the replica since the caller last heard of it, as tickets and outcomes tell.
//
// Ownership: keeps the verdict of the last commit, and that behind the last outcome, and gives each
//            back once by `release`.
// Threads:   not thread-safe; the caller's thread.

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

#include "common/clock.h"
#include "common/ids.h"
#include "worker/session/types.h"
#include "worker/session/verdict_assembler.h"
#include "worker/session/verdict_store.h"

namespace signvote {

class ReplicaMoves {
 public:
  using Release = std::function<void(VerdictStore::Slot*)>;  // never called with null
  explicit ReplicaMoves(Release release) : release_(std::move(release)) {}
  ReplicaMoves(const ReplicaMoves&) = delete;
  ReplicaMoves& operator=(const ReplicaMoves&) = delete;

  // ---- what happens
  // This commit was applied, by itself.
  void Applied(CommitEvent commit, Duration took);
  // Whatever came before does not count: a state takes its place, or the caller had no replica yet.
  void Transferred();
  // A rewind was applied while a state was fetched.
  void Rewound() { rewound_ = true; }

  // ---- what is told
  // Fills in what the ticket says of moves; they are told with it.
  void Tell(RoundTicket* ticket);
  // Of the round voted on, `ballot` being its ballot's times; they are told with it. `next`: the
  // round that the replica stands at.
  CommitOutcome TakeOutcome(Round voted, Round next, const RoundTimes& ballot, bool finished);
  // The verdict of the last outcome is of no use to the caller any more.
  void ReleaseOutcome();

 private:
  void Forget();

  const Release release_;
  uint64_t applied_ = 0;
  bool transferred_ = true;  // the first ticket has no replica before it
  bool rewound_ = false;
  std::optional<CommitEvent> last_;
  VerdictStore::Slot* outcome_slot_ = nullptr;
};

}  // namespace signvote
