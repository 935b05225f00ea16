#include "common/net/waiting_room.h"

#include <algorithm>

#include "common/check.h"

namespace signvote {

WaitingRoom::WaitingRoom(Options options, Rng rng)
    : options_(options),
      period_(options.patience / static_cast<int64_t>(std::max<size_t>(options.places, 1))),
      rng_(rng) {
  SIGNVOTE_CHECK(options.places > 0);
}

void WaitingRoom::Enter(Id id) {
  SIGNVOTE_CHECK(!full());
  SIGNVOTE_CHECK(seat_of_.emplace(id, seats_.size()).second);
  seats_.push_back(id);
}

bool WaitingRoom::Leave(Id id) {
  const auto it = seat_of_.find(id);
  if (it == seat_of_.end()) return false;
  const size_t seat = it->second;
  seat_of_.erase(it);
  if (seat + 1 < seats_.size()) {
    seats_[seat] = seats_.back();
    seat_of_[seats_[seat]] = seat;
  }
  seats_.pop_back();
  return true;
}

std::optional<WaitingRoom::Id> WaitingRoom::TurnAway(Time now) {
  if (now < next_ || seats_.empty()) return std::nullopt;
  next_ = std::max(next_, now - kBurst) + period_;
  return TurnAwayAtOnce();
}

std::optional<WaitingRoom::Id> WaitingRoom::TurnAwayAtOnce() {
  if (seats_.empty()) return std::nullopt;
  Id earliest = seats_[rng_.Below(seats_.size())];
  for (int i = 1; i < kDraws; ++i) {
    earliest = std::min(earliest, seats_[rng_.Below(seats_.size())]);
  }
  (void)Leave(earliest);  // it was drawn from those who are here
  return earliest;
}

std::optional<WaitingRoom::Id> WaitingRoom::LookAtNext() {
  if (seats_.empty()) return std::nullopt;
  looked_at_ = looked_at_ + 1 < seats_.size() ? looked_at_ + 1 : 0;
  return seats_[looked_at_];
}

}  // namespace signvote
