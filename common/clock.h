#pragma once
// Time as a dependency: the only place of this project that asks the operating system for it.

#include <chrono>
#include <cstdint>
#include <memory>

namespace signvote {

using Duration = std::chrono::nanoseconds;

// A point on the monotonic clock, in nanoseconds since an arbitrary start.
struct Time {
  int64_t ns = 0;
  constexpr auto operator<=>(const Time&) const = default;
  constexpr Time operator+(Duration d) const { return {ns + d.count()}; }
  constexpr Time operator-(Duration d) const { return {ns - d.count()}; }
  constexpr Duration operator-(Time other) const { return Duration(ns - other.ns); }
};

constexpr double ToSeconds(Duration d) { return static_cast<double>(d.count()) * 1e-9; }
constexpr Duration FromSeconds(double seconds) {
  return Duration(static_cast<int64_t>(seconds * 1e9));
}

// Threads: thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual Time Now() const = 0;            // monotonic
  virtual int64_t UnixMicros() const = 0;  // wall clock, microseconds since 1970
  virtual void SleepFor(Duration d) = 0;
  // The operating system's clocks; lives for the whole process.
  static Clock* System();
};

// A clock that moves only when told. Threads: not thread-safe.
class FakeClock : public Clock {
 public:
  Time Now() const override { return now_; }
  int64_t UnixMicros() const override { return now_.ns / 1000; }
  void SleepFor(Duration d) override { Advance(d); }
  void Advance(Duration d) { now_ = now_ + d; }

 private:
  Time now_;
};

}  // namespace signvote
