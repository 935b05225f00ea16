#include "server/round/arrivals.h"

#include <algorithm>

namespace signvote::round {
namespace {

constexpr int kSlowestMultiple = 3;  // a member slower than this is not waited for
constexpr int kLongRoundDivisor =
    4;  // long rounds: a quarter of the median, where the ceiling would be stricter

}  // namespace

template <size_t N>
std::optional<Duration> RecentMedian<N>::Median() const {
  const size_t n = std::min(added_, N);
  if (n == 0) return std::nullopt;
  std::array<Duration, N> sorted = values_;
  const auto middle = sorted.begin() + static_cast<ptrdiff_t>(n / 2);
  std::nth_element(sorted.begin(), middle, sorted.begin() + static_cast<ptrdiff_t>(n));
  return *middle;
}

template class RecentMedian<kArrivalsPerWorker>;
template class RecentMedian<kArrivalsOverall>;

Duration AttemptWait(const DeadlineConfig& config,
                     std::span<const std::optional<Duration>> member_medians,
                     std::optional<Duration> overall_median) {
  if (!overall_median.has_value()) return config.initial;
  const Duration overall = *overall_median;
  Duration slowest{0};
  for (const std::optional<Duration>& median : member_medians) {
    slowest = std::max(slowest, std::min(median.value_or(overall), kSlowestMultiple * overall));
  }
  const Duration ceiling = std::max(config.grace_ceiling, overall / kLongRoundDivisor);
  const Duration wanted = FromSeconds(config.grace_multiple * ToSeconds(overall));
  return slowest + std::clamp(wanted, config.grace_floor, ceiling);
}

}  // namespace signvote::round
