#include "server/run/rate_limit.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace signvote::run {

std::string WithHeldBack(std::string_view text, uint64_t held_back) {
  if (held_back == 0) return std::string(text);
  return absl::StrCat(ToAbsl(text), text.empty() ? "" : " ", "(and ", held_back,
                      " more that were not told)");
}

void RateLimit::Refill(Bucket* bucket, const Budget& budget, Time now) {
  if (bucket->fresh) {
    bucket->fresh = false;
    bucket->left = budget.burst;
    bucket->counted_to = now;
    return;
  }
  const int64_t back = (now - bucket->counted_to) / budget.refill;
  if (back <= 0) return;
  const int64_t missing = budget.burst - bucket->left;
  bucket->left += static_cast<uint32_t>(std::min(back, missing));
  bucket->counted_to = bucket->counted_to + back * budget.refill;
}

std::optional<uint64_t> RateLimit::Take(const std::string& key, Time now) {
  auto it = keys_.find(key);
  if (it == keys_.end()) {
    if (keys_.size() >= kKeysMax) {
      const auto oldest = by_age_.begin();
      keys_.erase(oldest->second);
      by_age_.erase(oldest);
    }
    it = keys_.emplace(key, Bucket{}).first;
  } else {
    by_age_.erase({it->second.asked, key});
  }
  Bucket& bucket = it->second;
  bucket.asked = now;
  by_age_.insert({now, key});
  Refill(&bucket, options_.each, now);
  if (options_.all.has_value()) Refill(&all_, *options_.all, now);
  if (bucket.left == 0 || (options_.all.has_value() && all_.left == 0)) {
    ++bucket.held_back;
    ++held_back_;
    return std::nullopt;
  }
  --bucket.left;
  if (options_.all.has_value()) --all_.left;
  return std::exchange(bucket.held_back, 0);
}

Duration RateLimit::Wait(const std::string& key, Time now) const {
  const auto it = keys_.find(key);
  if (it == keys_.end() || it->second.left > 0) return Duration::zero();
  return std::max(Duration::zero(), it->second.counted_to + options_.each.refill - now);
}

}  // namespace signvote::run
