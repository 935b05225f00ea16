#include "worker/session/verdict_store.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace signvote {

bool VerdictStore::Slot::IsWhole(Epoch epoch, Attempt attempt) const {
  return std::all_of(chunks.begin(), chunks.end(), [&](const Origin& origin) {
    return origin.present && origin.epoch == epoch && origin.attempt == attempt;
  });
}

VerdictStore::VerdictStore(PayloadPlan plan, size_t slots_max, std::pmr::memory_resource* memory)
    : plan_(std::move(plan)), slots_max_(slots_max), memory_(memory) {
  SIGNVOTE_CHECK(slots_max > 0);
}

VerdictStore::Slot* VerdictStore::Acquire(Round round) {
  MutexLock lock(&mu_);
  if (free_.empty()) {
    if (slots_.size() >= slots_max_) return nullptr;
    // Made with its memory: assigned to, a vector keeps that which it was made with.
    auto slot =
        std::make_unique<Slot>(Slot{.round = round,
                                    .plan = &plan_,
                                    .bits = std::pmr::vector<uint8_t>(plan_.TotalBytes(), memory_),
                                    .chunks = {},
                                    .sums = {},
                                    .first_chunk = {}});
    free_.push_back(slot.get());
    slots_.push_back(std::move(slot));
  }
  // The one used last is still in the caches.
  Slot* const slot = free_.back();
  free_.pop_back();
  slot->round = round;
  slot->chunks.assign(plan_.chunks(), {});
  slot->sums.clear();
  slot->first_chunk = {};
  return slot;
}

void VerdictStore::Release(Slot* slot) {
  std::unique_ptr<Slot> surplus;  // freed outside the lock
  MutexLock lock(&mu_);
  if (free_.size() < kFreeMax) {
    free_.push_back(slot);
    return;
  }
  const auto it = std::find_if(slots_.begin(), slots_.end(),
                               [slot](const auto& owned) { return owned.get() == slot; });
  surplus = std::move(*it);
  slots_.erase(it);
}

}  // namespace signvote
