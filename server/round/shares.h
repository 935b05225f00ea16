#pragma once
// Which worker trains on which share of the data.

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/ids.h"
#include "server/round/state.h"
#include "server/round/types.h"

namespace signvote::round {

// A newcomer gets the lowest free share. A lost worker's share stays reserved for it for
// `hold_rounds` rounds. Every change leaves as an action.
//
// Threads:    thread-compatible.
// Invariants: no two workers hold one share, and no worker two.
// Cost:       of a worker that holds a share already O(1); of a newcomer O(shares).
class ShareTable {
 public:
  // Everybody is away.
  ShareTable(uint64_t hold_rounds, const std::vector<ShareState>& state);

  // The share of a worker that takes part: the one it holds or that is reserved for it, else the
  // lowest that is free.
  Share Assign(WorkerId worker, Actions& out);
  // The worker is gone; its share is free again in round + hold_rounds.
  void Reserve(WorkerId worker, Round round);
  // Frees the worker's share at once.
  void Forget(WorkerId worker, Actions& out);
  // Frees the shares whose reservation ends in this round. Before any Assign of the round.
  void Expire(Round round, Actions& out);
  std::optional<Share> Find(WorkerId worker) const;

  // As after losing everybody in `round`.
  std::vector<ShareState> State(Round round) const;

 private:
  struct Holder {
    WorkerId worker;
    std::optional<Round> free_from;  // set while the holder is away
  };
  Round FreeFrom(Round round) const;

  uint64_t hold_rounds_;
  std::map<Share, Holder> holders_;  // bounded by the workers that the engine knows
  absl::flat_hash_map<WorkerId, Share> share_of_;
};

}  // namespace signvote::round
