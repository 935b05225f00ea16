#include "server/rpc/ballot_slots.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace signvote::rpc {

BallotSlots::BallotSlots(ChunkPlan plan, std::shared_ptr<uint8_t> buffer)
    : plan_(plan), buffer_(std::move(buffer)), slots_(plan.chunks(), Slot::kClosed) {}

BallotSlots::Place BallotSlots::Begin(Round round, Attempt attempt, ChunkIndex chunk,
                                      std::span<uint8_t>* out) {
  SIGNVOTE_CHECK(chunk.value() < plan_.chunks());
  MutexLock lock(&mu_);
  if (!opened_ || round > round_ || (round == round_ && attempt > attempt_)) return Place::kNotOpen;
  if (round != round_ || attempt != attempt_) return Place::kNotNeeded;
  Slot& slot = slots_[chunk.value()];
  if (slot != Slot::kFree) return Place::kNotNeeded;
  slot = Slot::kWriting;
  *out = {buffer_.get() + plan_.ByteOffset(chunk), plan_.Bytes(chunk)};
  return Place::kWrite;
}

bool BallotSlots::End(Round round, Attempt attempt, ChunkIndex chunk, bool good) {
  MutexLock lock(&mu_);
  if (round != round_ || attempt != attempt_) return false;
  Slot& slot = slots_[chunk.value()];
  if (slot != Slot::kWriting) return false;
  slot = good ? Slot::kFull : Slot::kFree;
  return good;
}

void BallotSlots::Open(Round round, Attempt attempt) {
  MutexLock lock(&mu_);
  opened_ = true;
  round_ = round;
  attempt_ = attempt;
  std::fill(slots_.begin(), slots_.end(), Slot::kFree);
}

void BallotSlots::Close(ChunkIndex chunk) {
  MutexLock lock(&mu_);
  slots_[chunk.value()] = Slot::kClosed;
}

}  // namespace signvote::rpc
