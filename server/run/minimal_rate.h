#pragma once
// Progress as bytes per time, and not as a sign of life.

#include <cstdint>

#include "common/clock.h"

namespace signvote::run {

// In each window, window × bytes_per_second_min must have moved. So B bytes take at most
// B / bytes_per_second_min and two windows, well or badly, however cleverly they trickle.
//
// Threads: thread-compatible. Pure: time comes in.
class MinimalRate {
 public:
  struct Options {
    Duration window{};
    uint64_t bytes_per_second_min = 0;
  };

  // REQUIRES: window > 0.
  MinimalRate(const Options& options, Time now) : options_(options), start_(now) {}

  // Asked now and then, with all bytes that have moved so far. True: a window has passed with fewer
  // than `share` of what it wants; 0 < share <= 1, for those who share a link with many.
  bool Missed(uint64_t bytes, double share, Time now);

 private:
  const Options options_;
  uint64_t bytes_ = 0;  // at the window's start
  Time start_;
};

}  // namespace signvote::run
