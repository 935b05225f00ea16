#include "server/commit/commit_ring.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace signvote {

uint64_t CommitRing::DefaultBudget(uint64_t payload_bytes) {
  return std::max(kDefaultBytesMin, kDefaultRounds * payload_bytes);
}

size_t CommitRing::CapacityFor(uint64_t budget_bytes, uint64_t payload_bytes) {
  return std::clamp<uint64_t>(budget_bytes / std::max<uint64_t>(payload_bytes, 1), kRoundsMin,
                              kRoundsMax);
}

uint64_t CommitRing::BytesFor(uint64_t budget_bytes, uint64_t payload_bytes) {
  return CapacityFor(budget_bytes, payload_bytes) * payload_bytes;
}

CommitRing::CommitRing(const Options& options) : options_(options), next_(options.start) {
  SIGNVOTE_CHECK(options_.rounds_kept > 0);
}

void CommitRing::Push(std::shared_ptr<const CommitRecord> record) {
  SIGNVOTE_CHECK(record->round == next_);
  bytes_ += record->payload_bytes;
  records_.push_back(std::move(record));
  ++next_;
  if (records_.size() <= options_.rounds_kept) return;
  bytes_ -= records_.front()->payload_bytes;
  records_.pop_front();
}

std::shared_ptr<const CommitRecord> CommitRing::Find(Round round) const {
  if (round < first() || round >= next_) return nullptr;
  return records_[round.value() - first().value()];
}

absl::Status CommitRing::CheckReaches(Round round) const {
  SIGNVOTE_CHECK(round <= next_);
  if (Reaches(round)) return absl::OkStatus();
  const uint64_t behind = next_.value() - round.value();
  return absl::ResourceExhaustedError(
      absl::StrCat("commits from round ", round.value(), " on are no longer kept: ", behind,
                   " rounds behind is more than the ", options_.rounds_kept,
                   " rounds that the catch-up budget holds; for what was missed so far it takes ",
                   behind * options_.payload_bytes, " bytes"));
}

}  // namespace signvote
