#include "server/replica/commit_ring.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace signvote {

size_t CommitRing::CapacityFor(uint64_t budget_bytes, size_t verdict_bytes) {
  return std::clamp<uint64_t>(budget_bytes / std::max<size_t>(verdict_bytes, 1), kRoundsMin,
                              kRoundsMax);
}

void CommitRing::Push(std::shared_ptr<const CommitRecord> record) {
  SIGNVOTE_CHECK(record->round == next_);
  if (records_.size() == capacity_) records_.pop_front();
  records_.push_back(std::move(record));
  ++next_;
}

std::shared_ptr<const CommitRecord> CommitRing::Find(Round round) const {
  if (round < first() || round >= next_) return nullptr;
  return records_[round.value() - first().value()];
}

}  // namespace signvote
