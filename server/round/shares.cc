#include "server/round/shares.h"

#include <algorithm>
#include <limits>

namespace signvote::round {

Share ShareTable::Assign(WorkerId worker, Round round) {
  Expire(round);
  Share lowest{0};
  bool gap = false;
  for (auto& [share, holder] : holders_) {
    if (holder.worker == worker) {
      holder.free_from.reset();
      return share;
    }
    if (!gap && share == lowest) {
      ++lowest;
    } else {
      gap = true;
    }
  }
  holders_[lowest] = {worker, std::nullopt};
  return lowest;
}

void ShareTable::Reserve(WorkerId worker, Round round) {
  for (auto& [share, holder] : holders_) {
    if (holder.worker != worker) continue;
    const uint64_t left = std::numeric_limits<uint64_t>::max() - round.value();
    holder.free_from = Round(round.value() + std::min(hold_rounds_, left));
  }
  Expire(round);
}

void ShareTable::Forget(WorkerId worker) {
  std::erase_if(holders_, [&](const auto& entry) { return entry.second.worker == worker; });
}

std::optional<Share> ShareTable::Find(WorkerId worker) const {
  for (const auto& [share, holder] : holders_) {
    if (holder.worker == worker) return share;
  }
  return std::nullopt;
}

void ShareTable::Expire(Round round) {
  std::erase_if(holders_, [&](const auto& entry) {
    return entry.second.free_from.has_value() && *entry.second.free_from <= round;
  });
}

}  // namespace signvote::round
