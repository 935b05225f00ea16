#pragma once
// Simulated time: an event queue, and the one source of chance of a run. One thread, one seed.

#include <cstdint>
#include <functional>
#include <queue>
#include <vector>

#include "common/clock.h"
#include "common/rng.h"

namespace signvote::sim {

// Threads: thread-compatible.
class Timeline final : public Clock {
 public:
  explicit Timeline(uint64_t seed) : rng_(seed, /*stream=*/2) {}

  Time Now() const override { return now_; }
  int64_t UnixMicros() const override { return now_.ns / 1000; }
  // Nobody in a simulated run may wait. Ends the process.
  void SleepFor(Duration d) override;

  void At(Time at, std::function<void()> what);
  void After(Duration wait, std::function<void()> what) { At(now_ + wait, std::move(what)); }
  void After(double seconds, std::function<void()> what) {
    After(FromSeconds(seconds), std::move(what));
  }
  // Runs the next event, of those at one time the one that was asked for first. False: there is none.
  bool RunOne();
  uint64_t events() const { return events_; }
  double Seconds() const { return ToSeconds(now_ - Time{}); }

  // ---- chance
  double Uniform(double low, double high) { return low + (high - low) * rng_.Uniform(); }
  uint64_t Below(uint64_t bound) { return rng_.Below(bound); }
  bool OneIn(uint64_t n) { return rng_.Below(n) == 0; }

 private:
  struct Item {
    Time at;
    uint64_t sequence;
    std::function<void()> what;
    bool operator>(const Item& o) const { return at != o.at ? at > o.at : sequence > o.sequence; }
  };

  Rng rng_;
  Time now_;
  uint64_t sequence_ = 0, events_ = 0;
  std::priority_queue<Item, std::vector<Item>, std::greater<>> queue_;
};

}  // namespace signvote::sim
