#include "server/run/minimal_rate.h"

namespace signvote::run {

bool MinimalRate::Missed(uint64_t bytes, double share, Time now) {
  const Duration passed = now - start_;
  if (passed < options_.window) return false;
  // Looked at a little late, a window is as much longer.
  const double wanted =
      share * ToSeconds(passed) * static_cast<double>(options_.bytes_per_second_min);
  if (static_cast<double>(bytes - bytes_) < wanted) return true;
  bytes_ = bytes;
  start_ = now;
  return false;
}

}  // namespace signvote::run
