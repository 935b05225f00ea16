#pragma once
// How long ballots usually take, and from it how long an attempt waits for them.

#include <array>
#include <cstddef>
#include <optional>
#include <span>

#include "common/clock.h"
#include "server/round/engine.h"

namespace signvote::round {

// The median of the last N durations. Threads: thread-compatible.
template <size_t N>
class RecentMedian {
 public:
  void Add(Duration value) {
    values_[added_ % N] = value;
    ++added_;
  }
  // nullopt before the first Add. Of an even number: the upper of the two in the middle.
  std::optional<Duration> Median() const;

 private:
  std::array<Duration, N> values_{};
  size_t added_ = 0;
};

inline constexpr size_t kArrivalsPerWorker = 16;
inline constexpr size_t kArrivalsOverall = 64;
using WorkerArrivals = RecentMedian<kArrivalsPerWorker>;
using OverallArrivals = RecentMedian<kArrivalsOverall>;

// How long an attempt waits, from its opening: slowest regular arrival + grace.
//   slowest   max over members of their own median, at most 3 × the overall one; a member without
//   history counts as
//             regular, with the overall median
//   grace     clamp(grace_multiple × overall median, grace_floor, max(grace_ceiling, ¼ × overall
//   median))
// `initial` when nothing has arrived yet.
Duration AttemptWait(const DeadlineConfig& config,
                     std::span<const std::optional<Duration>> member_medians,
                     std::optional<Duration> overall_median);

}  // namespace signvote::round
