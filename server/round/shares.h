#pragma once
// Which worker trains on which share of the data.

#include <cstdint>
#include <map>
#include <optional>

#include "common/ids.h"
#include "server/round/types.h"

namespace signvote::round {

// A newcomer gets the lowest free share. A lost worker's share stays reserved for it for
// `hold_rounds` rounds.
// Threads:    thread-compatible.
// Invariants: no two workers hold one share.
class ShareTable {
 public:
  explicit ShareTable(uint64_t hold_rounds) : hold_rounds_(hold_rounds) {}

  // The share of a worker that takes part from `round` on: the one it holds or that is reserved for
  // it, else the lowest that is free.
  Share Assign(WorkerId worker, Round round);
  // The worker is gone; its share is free again in round + hold_rounds.
  void Reserve(WorkerId worker, Round round);
  // Frees the worker's share at once.
  void Forget(WorkerId worker);
  std::optional<Share> Find(WorkerId worker) const;

 private:
  struct Holder {
    WorkerId worker;
    std::optional<Round> free_from;  // set while the holder is away
  };
  void Expire(Round round);

  const uint64_t hold_rounds_;
  std::map<Share, Holder> holders_;  // bounded by the workers that the engine knows
};

}  // namespace signvote::round
