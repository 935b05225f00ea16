#pragma once
// What a run did lately, for people who look late: the last events, and loss and stepsize of every
// round at a resolution that halves as the run grows.

#include <cstdint>
#include <deque>
#include <string_view>
#include <vector>

#include "signvote/v1/admin.pb.h"

namespace signvote::rpc {

// "KIND_JOINED" → "joined": the word for an event in logs.
std::string_view EventWord(v1::Event::Kind kind);

// Memory is bounded whatever peers send: by the constants below.
// Threads: not thread-safe.
class RunHistory {
 public:
  static constexpr size_t kEventsKept = 256;
  static constexpr size_t kPointsMax = 512;  // even
  static constexpr size_t kTextBytesMax = 200;

  // The newest event; the oldest makes room. Its sequence number is given here, texts are cut.
  void Add(v1::Event event);
  // The next committed round. `loss` may be NaN: nobody said one.
  void AddRound(uint64_t round, double loss, double stepsize);

  // Events with a larger sequence number than `events_after`, and the series.
  void Fill(uint64_t events_after, v1::WatchReply* out) const;

 private:
  struct Point {
    double loss_sum = 0, stepsize_sum = 0;
    uint64_t losses = 0, rounds = 0;
  };
  void Merge();

  std::deque<v1::Event> events_;
  uint64_t events_seen_ = 0;
  // Invariant: every point but the last stands for rounds_per_point_ rounds.
  std::vector<Point> points_;
  uint64_t first_round_ = 0, rounds_per_point_ = 1;
};

}  // namespace signvote::rpc
