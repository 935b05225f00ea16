#include "server/run/upload_lease.h"

#include <algorithm>

#include "common/check.h"

namespace signvote::run {

void UploadLease::Grant(PeerId holder, uint64_t total_bytes, Time now) {
  SIGNVOTE_CHECK(!holder_.has_value() && total_bytes > 0);
  holder_ = holder;
  total_bytes_ = total_bytes;
  bytes_ = window_bytes_ = 0;
  window_start_ = now;
}

uint64_t UploadLease::wanted_bytes() const {
  const double by_rate =
      ToSeconds(options_.timeout) * static_cast<double>(options_.bytes_per_second_min);
  return std::min(std::max<uint64_t>(1, static_cast<uint64_t>(by_rate)),
                  total_bytes_ - window_bytes_);
}

void UploadLease::Progress(uint64_t bytes, Time now) {
  if (!holder_.has_value() || Expired(now)) return;
  bytes_ = std::clamp(bytes, bytes_, total_bytes_);
  if (bytes_ - window_bytes_ < wanted_bytes()) return;
  window_bytes_ = bytes_;
  window_start_ = now;
}

bool UploadLease::Expired(Time now) const { return holder_.has_value() && now >= *expiry(); }

std::optional<Time> UploadLease::expiry() const {
  if (!holder_.has_value()) return std::nullopt;
  return window_start_ + options_.timeout + Duration(1);  // the time has passed
}

}  // namespace signvote::run
