#pragma once
// How often something may be told or done, when peers decide how often it happens.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "common/clock.h"

namespace signvote::run {

// `text`, and that so many like it were not told.
std::string WithHeldBack(std::string_view text, uint64_t held_back);

// A budget of lines for each key and for all together: a full budget is `burst` lines, and one comes
// back every `refill`. What is not told is counted, and the next line of the key that is told says how
// many were not.
//
// Memory:  at most kKeysMax keys; the one that was asked about longest ago makes room.
// Threads: thread-compatible. Pure: time comes in.
class RateLimit {
 public:
  struct Budget {
    uint32_t burst = 8;
    Duration refill = std::chrono::seconds(10);
  };
  struct Options {
    Budget each{.burst = 8, .refill = std::chrono::seconds(10)};
    // nullopt: each key for itself.
    std::optional<Budget> all = Budget{.burst = 64, .refill = std::chrono::seconds(1)};
  };
  static constexpr size_t kKeysMax = 1024;

  explicit RateLimit(Options options) : options_(options) {}

  // The number of this key's lines that were held back since its last one; nullopt: hold this one back.
  std::optional<uint64_t> Take(const std::string& key, Time now);
  // Until this key has something left of its own budget; zero when it has.
  Duration Wait(const std::string& key, Time now) const;
  uint64_t held_back() const { return held_back_; }  // of all keys, ever

 private:
  struct Bucket {
    bool fresh = true;
    uint32_t left = 0;
    Time counted_to;  // refills up to here are in `left`
    uint64_t held_back = 0;
    Time asked;
  };
  static void Refill(Bucket* bucket, const Budget& budget, Time now);

  const Options options_;
  std::map<std::string, Bucket> keys_;
  std::set<std::pair<Time, std::string>> by_age_;  // of keys_, by `asked`
  Bucket all_;
  uint64_t held_back_ = 0;
};

}  // namespace signvote::run
