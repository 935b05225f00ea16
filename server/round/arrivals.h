#pragma once
// How long ballots usually take, and from it how long an attempt waits for them
// (docs/decisions/0001-deadline.md).

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "common/clock.h"
#include "common/local_steps.h"
#include "server/round/config.h"
#include "server/round/state.h"

namespace signvote::round {

// The middle value; of an even number the upper of the two in the middle. REQUIRES: not empty.
Duration UpperMedian(std::vector<Duration> values);

// Durations of which the last `recent_max` and the first kFirstMax are kept.
// Threads: thread-compatible.
// Cost:    medians are computed when something is added, not when they are asked for.
class ArrivalHistory {
 public:
  static constexpr size_t kFirstMax = 16;

  // REQUIRES: recent_max > 0.
  explicit ArrivalHistory(size_t recent_max, const ArrivalState& state = {});

  void Add(Duration value);
  // The last one added turns out to be this long. REQUIRES: one was added.
  void ReplaceLast(Duration value);
  // Of the last ones; nullopt before the first. Of an even number: the upper of the two in the
  // middle.
  std::optional<Duration> Median() const { return median_; }
  // Of the first kFirstMax; nullopt while there are fewer.
  std::optional<Duration> FirstMedian() const { return first_median_; }
  ArrivalState State() const { return {recent_, first_}; }

 private:
  void Settle();

  size_t recent_max_;
  std::vector<Duration> recent_;  // oldest first
  std::vector<Duration> first_;
  bool last_is_first_ = false;  // the last one added is the last of first_
  std::optional<Duration> median_;
  std::optional<Duration> first_median_;
};

inline constexpr size_t kArrivalsPerWorker = 16;
inline constexpr size_t kArrivalsOverall = 64;

// The two medians of a member, or of the rounds.
struct Pace {
  std::optional<Duration> median;
  std::optional<Duration> first_median;
};

// How long the ballots of rounds with local steps take: a part for each minibatch, and one for sending,
// which does not grow with them. The first part is what the worker says of itself, as far as its arrival
// allows; one that says nothing has all of its arrival there.
class LocalArrivals {
 public:
  explicit LocalArrivals(size_t recent_max, const LocalArrivalState& state = {})
      : steps_(recent_max, state.steps), sendings_(recent_max, state.sendings) {}

  // One ballot, of so many minibatches, ≥ 1. What is sent in a silent round says nothing of a ballot's.
  struct Part {
    Duration step;
    std::optional<Duration> sending;
  };
  static Part Split(const LocalSteps& local, uint32_t taken, Duration arrival, Duration compute);
  void Add(const Part& part);

  // Of a round: nullopt while a part of it was not seen yet.
  Pace PaceOf(const LocalSteps& local) const;
  std::optional<Duration> step() const { return steps_.Median(); }
  std::optional<Duration> sending() const { return sendings_.Median(); }
  LocalArrivalState State() const { return {steps_.State(), sendings_.State()}; }

 private:
  ArrivalHistory steps_, sendings_;
};

struct WaitPlan {
  Duration wait{};
  // Of the members, by index: those that would need longer, but are waited for no longer than
  // `growth` allows.
  std::vector<size_t> outgrown;
};

// How long an attempt waits, from its opening: the longest wait for a member, each of them its usual
// arrival + grace.
//   usual   its own median, at most 3 × the overall one; a member without history counts as usual,
//           with the overall median
//   grace   clamp(grace_multiple × overall median, grace_floor, max(grace_ceiling, ¼ × overall))
//   limit   usual + grace is at most growth × the median of the member's own first 16 rounds, which
//           count as grace_floor when they were shorter. The overall median has the same limit. So
//           neither one that is always late by a little nor one that always comes at the deadline
//           moves the deadline for ever.
// `initial` when nothing has arrived yet.
WaitPlan PlanWait(const DeadlineConfig& config, std::span<const Pace> members, const Pace& overall);

}  // namespace signvote::round
