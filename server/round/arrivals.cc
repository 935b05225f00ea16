#include "server/round/arrivals.h"

#include <algorithm>

#include "common/check.h"

namespace signvote::round {
namespace {

constexpr int kSlowestMultiple = 3;   // a member slower than this is not waited for
constexpr int kLongRoundDivisor = 4;  // long rounds: a quarter, where the ceiling is stricter

constexpr double kLongestSeconds = 1e9;  // what a Duration holds

// nullopt while the first rounds are not over.
std::optional<Duration> Limit(const DeadlineConfig& config, const Pace& pace) {
  if (!pace.first_median.has_value()) return std::nullopt;
  const Duration first = std::max(*pace.first_median, config.grace_floor);
  return FromSeconds(std::min(config.growth * ToSeconds(first), kLongestSeconds));
}

}  // namespace

Duration UpperMedian(std::vector<Duration> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

ArrivalHistory::ArrivalHistory(size_t recent_max, const ArrivalState& state)
    : recent_max_(recent_max), recent_(state.recent), first_(state.first) {
  SIGNVOTE_CHECK(recent_max > 0);
  if (recent_.size() > recent_max) {
    recent_.erase(recent_.begin(), recent_.end() - static_cast<ptrdiff_t>(recent_max));
  }
  if (first_.size() > kFirstMax) first_.resize(kFirstMax);
  Settle();
}

void ArrivalHistory::Add(Duration value) {
  if (recent_.size() == recent_max_) recent_.erase(recent_.begin());
  recent_.push_back(value);
  last_is_first_ = first_.size() < kFirstMax;
  if (last_is_first_) first_.push_back(value);
  Settle();
}

void ArrivalHistory::ReplaceLast(Duration value) {
  SIGNVOTE_CHECK(!recent_.empty());
  recent_.back() = value;
  if (last_is_first_) first_.back() = value;
  Settle();
}

void ArrivalHistory::Settle() {
  if (recent_.empty()) return;
  median_ = UpperMedian(recent_);
  if (first_.size() == kFirstMax) first_median_ = UpperMedian(first_);
}

LocalArrivals::Part LocalArrivals::Split(const LocalSteps& local, uint32_t taken, Duration arrival,
                                         Duration compute) {
  const bool told = compute > Duration{0} && compute <= arrival;
  Part part{.step = (told ? compute : arrival) / std::max(taken, 1u), .sending = std::nullopt};
  if (told && !local.is_silent()) part.sending = arrival - compute;
  return part;
}

void LocalArrivals::Add(const Part& part) {
  steps_.Add(part.step);
  if (part.sending.has_value()) sendings_.Add(*part.sending);
}

Pace LocalArrivals::PaceOf(const LocalSteps& local) const {
  const auto whole = [&](std::optional<Duration> step, std::optional<Duration> sending) {
    std::optional<Duration> out;
    if (local.is_silent()) sending = Duration{0};
    if (step.has_value() && sending.has_value())
      out = *step * static_cast<int64_t>(local.steps) + *sending;
    return out;
  };
  return {.median = whole(steps_.Median(), sendings_.Median()),
          .first_median = whole(steps_.FirstMedian(), sendings_.FirstMedian())};
}

WaitPlan PlanWait(const DeadlineConfig& config, std::span<const Pace> members,
                  const Pace& overall_pace) {
  if (!overall_pace.median.has_value()) return {.wait = config.initial, .outgrown = {}};
  const std::optional<Duration> overall_limit = Limit(config, overall_pace);
  const Duration overall = std::min(*overall_pace.median, overall_limit.value_or(Duration::max()));
  const Duration grace =
      std::clamp(FromSeconds(config.grace_multiple * ToSeconds(overall)), config.grace_floor,
                 std::max(config.grace_ceiling, overall / kLongRoundDivisor));
  const auto need = [&](const Pace& pace) {
    return std::min(pace.median.value_or(overall), kSlowestMultiple * overall) + grace;
  };
  WaitPlan plan;
  for (const Pace& pace : members) {
    plan.wait =
        std::max(plan.wait, std::min(need(pace), Limit(config, pace).value_or(Duration::max())));
  }
  for (size_t i = 0; i < members.size(); ++i) {
    if (need(members[i]) > plan.wait) plan.outgrown.push_back(i);
  }
  return plan;
}

}  // namespace signvote::round
