#include "server/round/config.h"

#include <cmath>
#include <string>

#include "absl/strings/str_format.h"
#include "server/round/notices.h"

namespace signvote::round {
namespace {

constexpr uint32_t kWorkersMax = 1024;

absl::Status Invalid(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrFormat("round engine: %s", what));
}

}  // namespace

absl::Status ValidateConfig(const EngineConfig& c) {
  if (c.coordinates == 0 || c.chunks == 0) return Invalid("a model without coordinates or chunks");
  if (c.workers_max == 0 || c.workers_max > kWorkersMax) {
    return Invalid(absl::StrFormat("at most %d workers are accepted, not %d; use 1 to %d",
                                   kWorkersMax, c.workers_max, kWorkersMax));
  }
  if (c.workers_min == 0 || c.workers_min > c.workers_max) {
    return Invalid(absl::StrFormat("round 0 cannot wait for %d workers; use 1 to %d", c.workers_min,
                                   c.workers_max));
  }
  if (c.quorum > c.workers_max) {
    return Invalid(absl::StrFormat("a quorum of %d is above the limit of %d workers", c.quorum,
                                   c.workers_max));
  }
  if (c.observer_after == 0)
    return Invalid("a member cannot become an observer after 0 abstentions; use 1 or more");
  if (c.nonfinite_rounds == 0) {
    return Invalid("a run cannot end after 0 rounds without a finite loss; use 1 or more");
  }
  const DeadlineConfig& d = c.deadline;
  if (d.initial <= Duration{0}) return Invalid("the initial deadline must be above 0 s");
  if (!(std::isfinite(d.grace_multiple) && d.grace_multiple >= 0 && d.grace_multiple <= 1000)) {
    return Invalid("the grace multiple of the deadline must lie in [0, 1000]");
  }
  if (d.grace_floor < Duration{0} || d.grace_ceiling < d.grace_floor) {
    return Invalid(
        absl::StrFormat("the grace of the deadline needs 0 <= floor <= ceiling, not %s and %s",
                        Seconds(d.grace_floor), Seconds(d.grace_ceiling)));
  }
  if (!(d.growth >= 2 && d.growth <= 1000)) {
    return Invalid("the growth of the deadline must lie in [2, 1000]");
  }
  if (c.wait_timeout <= Duration{0}) return Invalid("the wait timeout must be above 0 s");
  if (c.stop_wait <= Duration{0}) return Invalid("the wait of a stop must be above 0 s");
  if (c.linger < Duration{0}) return Invalid("the linger time must not be negative");
  if (!std::isfinite(c.x0_max_abs) || c.x0_max_abs < 0)
    return Invalid("the initial parameters are not finite");
  if (!std::isfinite(c.step_scale_max) || c.step_scale_max <= 0)
    return Invalid("the largest step scale must be > 0");
  return absl::OkStatus();
}

}  // namespace signvote::round
