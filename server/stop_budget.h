#pragma once
// How long a server takes to end once a stop is asked for: one deadline, which all that is done after
// the stop shares.

#include <functional>

#include "common/clock.h"

namespace signvote {

// Each part of the ending asks what it may take. What one leaves is there for the next; what one
// overdraws is missing at the next, not at the end. Without a stop there is no deadline, and a part gets
// what it would like.
//
// Ownership: does not own the clock, which must outlive it.
// Threads:   thread-compatible.
class StopBudget {
 public:
  // `requested`: whether a stop was asked for; stays true.
  StopBudget(Clock* clock, Duration whole, std::function<bool()> requested);

  // Whether a stop was asked for. The first time that it was, the time of all that follows begins.
  bool Begun();
  // The time of a part that would like `wish`, when `reserve` shall be left for those behind it. Not
  // negative.
  Duration Share(Duration wish, Duration reserve = Duration::zero());

  // Time that does not count passes while it lives: the deadline moves by as much.
  class Pause {
   public:
    explicit Pause(StopBudget* budget);
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    StopBudget* const budget_;
    const bool counting_;  // when it began
    const Time begin_;
  };

 private:
  Clock* const clock_;
  const Duration whole_;
  const std::function<bool()> requested_;
  bool begun_ = false;
  Time deadline_;  // once begun
};

}  // namespace signvote
