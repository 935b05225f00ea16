#pragma once
// What `signvote top` knows of a run: the server's last answer, and what only a series of answers
// tells: rates, events kept beyond the server's own memory of them, a lost connection. No I/O;
// times come in.

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "signvote/v1/admin.pb.h"

namespace signvote::ctl {

// Bytes per second over the last few seconds; NaN: not known yet.
struct WireRate {
  double up, down;
};

// Threads: not thread-safe. Copyable: a copy is a frozen display.
// Texts that workers chose (names, reasons, addresses) become printable ASCII on the way in: no
// terminal sequence gets through.
class TopModel {
 public:
  static constexpr size_t kEventsKept = 1000;
  static constexpr Duration kRateWindow = std::chrono::seconds(5);

  // An answer of the server. One of another run (the server was started again) begins everything
  // anew.
  void OnReply(v1::WatchReply reply, Time now);
  // A call failed. The last answer stays, with the time since when it is stale.
  void OnLost(std::string_view why, Time now);

  // The last answer's. REQUIRES: has_status().
  bool has_status() const { return has_status_; }
  const v1::Status& status() const { return status_; }
  const v1::RoundSeries& series() const { return series_; }

  // The run's held-out losses, oldest first. Those of other windows are another series.
  const std::vector<v1::HeldOut>& held_out() const { return held_out_; }
  // The oldest of the last one's windows, with which it may be compared. REQUIRES: there is one.
  const v1::HeldOut& first_comparable() const;

  // Oldest first. `since_last_reply`: how many of them the last answer brought, at the end.
  const std::deque<v1::Event>& events() const { return events_; }
  size_t since_last_reply() const { return new_events_; }

  // The server answers no more because the run has ended.
  bool ended() const;

  struct Lost {
    Time since;  // the last answer, or the first failure when there was none
    std::string why;
  };
  const std::optional<Lost>& lost() const { return lost_; }
  // Whether the last answer was the first one of another run than the one before.
  bool new_run() const { return new_run_; }

  double rounds_per_second() const;
  WireRate Rate() const;  // all workers together
  WireRate RateOf(const std::string& worker) const;

 private:
  struct Sample {
    Time at;
    uint64_t round = 0;
    struct Bytes {
      uint64_t up = 0, down = 0;
    };
    Bytes all;
    std::map<std::string, Bytes> workers;
  };
  static WireRate Between(const Sample::Bytes* old_bytes, const Sample::Bytes* new_bytes,
                          Duration time);

  bool has_status_ = false, new_run_ = false;
  v1::Status status_;
  v1::RoundSeries series_;
  std::vector<v1::HeldOut> held_out_;
  std::deque<v1::Event> events_;
  size_t new_events_ = 0;
  uint64_t events_seen_ = 0;
  std::optional<Lost> lost_;
  Time answered_at_;
  std::deque<Sample> samples_;  // within kRateWindow, and the newest one before it
};

// Printable ASCII: everything else becomes '?'.
std::string Printable(std::string_view text);

}  // namespace signvote::ctl
