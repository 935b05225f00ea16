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

CommitRing::CommitRing(const Options& options)
    : options_{.start = options.start,
               .rounds_kept = options.rounds_kept,
               .rounds_pinned_max = std::max(options.rounds_kept, options.rounds_pinned_max),
               .payload_bytes = options.payload_bytes},
      next_(options.start) {
  SIGNVOTE_CHECK(options_.rounds_kept > 0);
}

void CommitRing::Push(std::shared_ptr<const CommitRecord> record) {
  SIGNVOTE_CHECK(record->round == next_);
  bytes_ += record->payload_bytes;
  records_.push_back(std::move(record));
  ++next_;
  Trim();
}

void CommitRing::Trim() {
  if (records_.size() > options_.rounds_pinned_max) {
    const Round least(next_.value() - options_.rounds_pinned_max);
    for (auto& [id, pin] : pins_) {
      if (pin.lost || pin.from >= least) continue;
      pin.lost = true;
      pin.lost_at = next_;
    }
  }
  Round wanted(next_.value() - std::min(records_.size(), options_.rounds_kept));
  for (const auto& [id, pin] : pins_) {
    if (!pin.lost) wanted = std::min(wanted, pin.from);
  }
  while (first() < wanted) {
    bytes_ -= records_.front()->payload_bytes;
    records_.pop_front();
  }
}

std::shared_ptr<const CommitRecord> CommitRing::Find(Round round) const {
  if (round < first() || round >= next_) return nullptr;
  return records_[round.value() - first().value()];
}

CommitRing::Pin CommitRing::PinFrom(Round from) {
  SIGNVOTE_CHECK(Reaches(from));
  const uint64_t id = ++last_pin_;
  pins_[id] = {.from = from, .lost_at = next_};
  return Pin(this, id);
}

CommitRing::Pin::Pin(Pin&& other) noexcept
    : ring_(std::exchange(other.ring_, nullptr)), id_(other.id_) {}

CommitRing::Pin& CommitRing::Pin::operator=(Pin&& other) noexcept {
  if (this != &other) {
    Release();
    ring_ = std::exchange(other.ring_, nullptr);
    id_ = other.id_;
  }
  return *this;
}

void CommitRing::Pin::Advance(Round from) {
  if (ring_ == nullptr) return;
  Pinned& pin = ring_->pins_.at(id_);
  if (pin.lost) return;
  SIGNVOTE_CHECK(from >= pin.from && from <= ring_->next_);
  pin.from = from;
  ring_->Trim();
}

void CommitRing::Pin::Release() {
  if (ring_ == nullptr) return;
  CommitRing* const ring = std::exchange(ring_, nullptr);
  ring->pins_.erase(id_);
  ring->Trim();
}

absl::Status CommitRing::Pin::status() const {
  if (ring_ == nullptr) return absl::OkStatus();
  const Pinned& pin = ring_->pins_.at(id_);
  if (!pin.lost) return absl::OkStatus();
  const uint64_t behind = pin.lost_at.value() - pin.from.value();
  const uint64_t so_far = ring_->next_.value() - pin.from.value();
  return absl::ResourceExhaustedError(
      absl::StrCat("commits from round ", pin.from.value(), " on are no longer kept: ", behind,
                   " rounds behind is more than the ", ring_->options_.rounds_pinned_max,
                   " rounds that the catch-up budget holds; for what was missed so far it takes ",
                   so_far * ring_->options_.payload_bytes, " bytes"));
}

}  // namespace signvote
