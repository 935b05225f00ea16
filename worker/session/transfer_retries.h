#pragma once
// State transfers that came to nothing, one after the other: how long to wait before the next, what
// to tell people, and when it is hopeless.
//
// A transfer that succeeded was in vain too, until a round opens: when the state fell behind the
// commits that the server keeps, it is asked for again.
//
// Threads: not thread-safe, and none of its own: no clock, no network.

#include <algorithm>
#include <cstdint>
#include <optional>

#include "common/clock.h"

namespace signvote {

class TransferRetries {
 public:
  // In a row, after which it is said that they come to nothing.
  static constexpr int kInVainMax = 5;
  static constexpr Duration kPauseLongest = std::chrono::seconds(30);

  // What a state that was fetched whole took.
  struct Fetched {
    double seconds = 0;
    uint64_t rounds = 0;  // committed meanwhile, as its parts tell
  };

  // `first_pause` doubles from one transfer in vain to the next.
  explicit TransferRetries(Duration first_pause) : first_pause_(first_pause) {}

  void Begins() { ++in_vain_; }
  // It was given up for a reason of the caller's, which does not count.
  void Withdrawn() { --in_vain_; }
  void Failed() { fetched_.reset(); }
  void Succeeded(Fetched fetched) { fetched_ = fetched; }
  // The last one was not in vain.
  void RoundOpened() {
    in_vain_ = 0;
    fetched_.reset();
  }

  int in_vain() const { return in_vain_; }
  bool hopeless() const { return in_vain_ >= kInVainMax; }
  // The last one succeeded, and yet another is wanted. REQUIRES: asked before Begins().
  const std::optional<Fetched>& fell_behind() const { return fetched_; }
  // Before the next; zero when none was in vain.
  Duration Pause() const {
    if (in_vain_ == 0) return Duration::zero();
    return std::min<Duration>(kPauseLongest,
                              first_pause_ * (int64_t{1} << std::min(in_vain_ - 1, kDoublingsMax)));
  }

 private:
  static constexpr int kDoublingsMax = 20;

  const Duration first_pause_;
  int in_vain_ = 0;
  std::optional<Fetched> fetched_;
};

}  // namespace signvote
