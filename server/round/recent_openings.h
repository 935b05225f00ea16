#pragma once
// When the last rounds opened, for chunks that come after their round is over.

#include <array>
#include <cstddef>
#include <optional>

#include "common/clock.h"
#include "common/ids.h"
#include "common/local_steps.h"

namespace signvote::round {

// Threads: thread-compatible.
class RecentOpenings {
 public:
  static constexpr size_t kRounds = 8;

  // The round's first attempt opened.
  void Add(Round round, Time opened, const LocalSteps& local = {}) {
    openings_[round.value() % kRounds] = {round, opened, local};
  }
  // The round opened again: what comes now was computed for an earlier attempt, and says nothing
  // about how long a ballot takes.
  void Drop(Round round) { openings_[round.value() % kRounds].reset(); }
  // nullopt when the round is too long ago, or was dropped.
  std::optional<Time> Find(Round round) const {
    const Opening* const opening = Look(round);
    if (opening == nullptr) return std::nullopt;
    return opening->opened;
  }
  // How it takes its minibatches. REQUIRES: Find() has it.
  const LocalSteps& Local(Round round) const { return Look(round)->local; }

 private:
  struct Opening {
    Round round;
    Time opened;
    LocalSteps local;
  };
  const Opening* Look(Round round) const {
    const std::optional<Opening>& opening = openings_[round.value() % kRounds];
    return opening.has_value() && opening->round == round ? &*opening : nullptr;
  }

  std::array<std::optional<Opening>, kRounds> openings_;
};

}  // namespace signvote::round
