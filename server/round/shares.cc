#include "server/round/shares.h"

#include <algorithm>
#include <limits>

namespace signvote::round {

ShareTable::ShareTable(uint64_t hold_rounds, const std::vector<ShareState>& state)
    : hold_rounds_(hold_rounds) {
  for (const ShareState& s : state) {
    if (!share_of_.emplace(s.holder, s.share).second) continue;
    holders_[s.share] = {s.holder, s.free_from};
  }
}

Share ShareTable::Assign(WorkerId worker, Actions& out) {
  if (const auto it = share_of_.find(worker); it != share_of_.end()) {
    holders_.at(it->second).free_from.reset();
    return it->second;
  }
  Share lowest{0};
  for (const auto& [share, holder] : holders_) {
    if (share != lowest) break;
    ++lowest;
  }
  holders_[lowest] = {worker, std::nullopt};
  share_of_[worker] = lowest;
  out.push_back(ShareGiven{worker, lowest});
  return lowest;
}

void ShareTable::Reserve(WorkerId worker, Round round) {
  const auto it = share_of_.find(worker);
  if (it != share_of_.end()) holders_.at(it->second).free_from = FreeFrom(round);
}

Round ShareTable::FreeFrom(Round round) const {
  const uint64_t left = std::numeric_limits<uint64_t>::max() - round.value();
  return Round(round.value() + std::min(hold_rounds_, left));
}

void ShareTable::Forget(WorkerId worker, Actions& out) {
  const auto it = share_of_.find(worker);
  if (it == share_of_.end()) return;
  out.push_back(ShareFreed{worker, it->second});
  holders_.erase(it->second);
  share_of_.erase(it);
}

void ShareTable::Expire(Round round, Actions& out) {
  for (auto it = holders_.begin(); it != holders_.end();) {
    const Holder& holder = it->second;
    if (holder.free_from.has_value() && *holder.free_from <= round) {
      out.push_back(ShareFreed{holder.worker, it->first});
      share_of_.erase(holder.worker);
      it = holders_.erase(it);
    } else {
      ++it;
    }
  }
}

std::optional<Share> ShareTable::Find(WorkerId worker) const {
  const auto it = share_of_.find(worker);
  return it != share_of_.end() ? std::optional(it->second) : std::nullopt;
}

std::vector<ShareState> ShareTable::State(Round round) const {
  std::vector<ShareState> state;
  for (const auto& [share, holder] : holders_) {
    state.push_back({share, holder.worker, holder.free_from.value_or(FreeFrom(round))});
  }
  return state;
}

}  // namespace signvote::round
