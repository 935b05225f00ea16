#pragma once
// How a bench's processes take turns: a block of shared memory with counters that are waited for in
// the kernel, so that whoever is not on costs nothing.

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <new>

#include "common/check.h"
#include "common/clock.h"

namespace signvote::bench {

inline constexpr uint32_t kProcessesMax = 64;

// Processor time that a process has used, nanoseconds; 0: no such process.
inline int64_t CpuNanoseconds(pid_t process) {
  clockid_t clock;
  timespec time{};
  if (clock_getcpuclockid(process, &clock) != 0 || clock_gettime(clock, &time) != 0) return 0;
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// A number in shared memory that processes wait on.
class SharedCount {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  void Set(uint32_t value) {
    value_.store(value, std::memory_order_release);
    Wake();
  }
  void Increment() {
    value_.fetch_add(1, std::memory_order_acq_rel);
    Wake();
  }
  // Returns when the value may have changed from `seen`, or after `timeout`.
  void WaitChange(uint32_t seen, Duration timeout) const {
    const timespec limit{.tv_sec = static_cast<time_t>(timeout.count() / 1'000'000'000),
                         .tv_nsec = static_cast<long>(timeout.count() % 1'000'000'000)};
    syscall(SYS_futex, &value_, FUTEX_WAIT, seen, &limit, nullptr, 0);
  }
  // False when it did not get there in time.
  bool WaitAtLeast(uint32_t wanted, Duration timeout) const {
    const Time deadline = Clock::System()->Now() + timeout;
    for (uint32_t seen = value(); seen < wanted; seen = value()) {
      if (Clock::System()->Now() >= deadline) return false;
      WaitChange(seen, std::chrono::milliseconds(500));
    }
    return true;
  }

 private:
  void Wake() { syscall(SYS_futex, &value_, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }
  std::atomic<uint32_t> value_{0};
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
};

// One group of processes that do the same thing at the same time.
struct Turns {
  enum Command : uint32_t { kOneRound, kManyRounds, kLeave };
  // What one process saw of its last turn, in nanoseconds of the monotonic clock (the same in every
  // process).
  struct Seen {
    int64_t first_byte = 0, sent = 0, first_verdict = 0, committed = 0, end = 0;
    int64_t cpu = 0;  // processor time from the turn's start to the commit
  };

  SharedCount turn;     // grows with each turn
  SharedCount arrived;  // processes that are done with it
  SharedCount commits;  // processes that got the commit
  SharedCount failed;
  Command command = kOneRound;
  uint32_t rounds = 1;
  Seen seen[kProcessesMax];

  // In memory that children of this process share.
  static Turns* Make() {
    void* const memory =
        mmap(nullptr, sizeof(Turns), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    SIGNVOTE_CHECK(memory != MAP_FAILED);
    return new (memory) Turns;
  }
  void Give(Command what, uint32_t how_many_rounds) {
    command = what;
    rounds = how_many_rounds;
    arrived.Set(0);
    commits.Set(0);
    turn.Increment();
  }
  // Waits for the turn after `last` and returns it.
  uint32_t Await(uint32_t last) const {
    while (turn.value() == last) turn.WaitChange(last, std::chrono::seconds(10));
    return turn.value();
  }
};

}  // namespace signvote::bench
