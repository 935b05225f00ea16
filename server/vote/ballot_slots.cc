#include "server/vote/ballot_slots.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace signvote {

BallotSlots::BallotSlots(PayloadPlan payload, std::shared_ptr<uint8_t> buffer)
    : payload_(std::move(payload)),
      buffer_(std::move(buffer)),
      slots_(payload_.chunks(), Slot::kClosed) {}

BallotSlots::Place BallotSlots::Begin(Round round, Attempt attempt, ChunkIndex chunk,
                                      std::span<uint8_t>* out) {
  SIGNVOTE_CHECK(chunk.value() < payload_.chunks());
  MutexLock lock(&mu_);
  if (!opened_ || round > round_ || (round == round_ && attempt > attempt_)) return Place::kNotOpen;
  if (round != round_ || attempt != attempt_) return Place::kNotNeeded;
  Slot& slot = slots_[chunk.value()];
  if (slot != Slot::kFree) return Place::kNotNeeded;
  slot = Slot::kWriting;
  written_ = buffer_;
  *out = {written_.get() + payload_.Offset(chunk), payload_.Bytes(chunk, 1)};
  return Place::kWrite;
}

bool BallotSlots::End(Round round, Attempt attempt, ChunkIndex chunk, bool good) {
  MutexLock lock(&mu_);
  written_.reset();
  if (round != round_ || attempt != attempt_) return false;
  Slot& slot = slots_[chunk.value()];
  if (slot != Slot::kWriting) return false;
  slot = good ? Slot::kFull : Slot::kFree;
  return good;
}

void BallotSlots::Open(Round round, Attempt attempt) {
  MutexLock lock(&mu_);
  OpenLocked(round, attempt);
}

void BallotSlots::OpenIn(std::shared_ptr<uint8_t> buffer, Round round, Attempt attempt) {
  // Destroyed after the lock is released: it may be the last share.
  std::shared_ptr<uint8_t> old = std::move(buffer);
  MutexLock lock(&mu_);
  old.swap(buffer_);
  OpenLocked(round, attempt);
}

void BallotSlots::OpenLocked(Round round, Attempt attempt) {
  opened_ = true;
  round_ = round;
  attempt_ = attempt;
  std::fill(slots_.begin(), slots_.end(), Slot::kFree);
}

bool BallotSlots::Close(ChunkIndex chunk) {
  MutexLock lock(&mu_);
  return std::exchange(slots_[chunk.value()], Slot::kClosed) == Slot::kFull;
}

std::shared_ptr<const uint8_t> BallotSlots::buffer() const {
  MutexLock lock(&mu_);
  return buffer_;
}

}  // namespace signvote
