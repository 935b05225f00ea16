#pragma once
// Jittered exponential back-off: 50 ms, doubling, 2 s at most; each wait is drawn from the upper
// half of its bound, so that workers that lost their server at the same moment do not all come back
// at the same moment.

#include <algorithm>
#include <cstdint>

#include "common/clock.h"
#include "common/rng.h"

namespace signvote {

// Threads: not thread-safe.
class Backoff {
 public:
  static constexpr Duration kFirst = std::chrono::milliseconds(50);
  static constexpr Duration kLongest = std::chrono::seconds(2);

  explicit Backoff(uint64_t seed) : rng_(seed, 0) {}
  Duration Next() {
    const Duration bound = bound_;
    bound_ = std::min(kLongest, bound_ * 2);
    return bound / 2 +
           Duration(static_cast<int64_t>(rng_.Uniform() * static_cast<double>(bound.count()) / 2));
  }
  void Reset() { bound_ = kFirst; }

 private:
  Rng rng_;
  Duration bound_ = kFirst;
};

}  // namespace signvote
