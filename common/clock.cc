#include "common/clock.h"

#include <thread>

#include "common/may_wait.h"

namespace signvote {
namespace {

class SystemClock final : public Clock {
 public:
  Time Now() const override {
    return {
        std::chrono::duration_cast<Duration>(std::chrono::steady_clock::now().time_since_epoch())
            .count()};
  }
  int64_t UnixMicros() const override {
    return std::chrono::duration_cast<std::chrono::microseconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
  void SleepFor(Duration d) override {
    CheckMayWait("a sleep");
    if (d > Duration::zero()) std::this_thread::sleep_for(d);
  }
};

}  // namespace

Clock* Clock::System() {
  // Never destroyed: a log's writer asks for the time while the process ends.
  static SystemClock* const clock = new SystemClock;
  return clock;
}

}  // namespace signvote
