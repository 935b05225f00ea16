#pragma once
// What a run did lately, for people who look late: the last events, loss and stepsize of every round
// and the held-out losses, at a resolution that halves as the run grows.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "common/ids.h"

namespace signvote::run {

// A change that a person may want to know of. The numbers are those of v1::Event.Kind.
enum class EventKind : uint8_t {
  kJoined = 1,
  kMember = 2,
  kObserver = 3,
  kAbstained = 4,
  kLeft = 5,
  kLost = 6,
  kEvicted = 7,
  kRefused = 8,
  kResync = 9,
  kReopened = 10,
  kPaused = 11,
  kResumed = 12,
  kFinished = 13,
  kEnded = 14,
};
// "joined", …: the word for an event in logs.
std::string_view Words(EventKind kind);
// Whether peers can make events of this kind as fast as they please: these may not push the others out.
bool MadeByPeers(EventKind kind);
// Whether a worker can make events of this kind as often as there are rounds.
bool PacedByRounds(EventKind kind);

struct Event {
  uint64_t sequence = 0;  // 1, 2, 3, …
  EventKind kind = EventKind::kJoined;
  uint64_t round = 0;       // committed rounds when it happened
  double unix_seconds = 0;  // since 1970
  std::string worker;       // empty: no one worker's
  std::string reason;       // for people
};

// Point i stands for rounds_per_point rounds from first_round + i · rounds_per_point; the last may stand
// for fewer so far.
struct RoundSeries {
  uint64_t first_round = 0;
  uint64_t rounds_per_point = 1;  // a power of two
  std::vector<float> loss;        // mean of the rounds that have one; NaN: none has
  std::vector<float> stepsize;    // mean
};

// A loss on held-out windows. Only those of equal windows may be compared.
struct HeldOut {
  double loss = 0;       // nats per target
  double error = 0;      // its standard error over the windows
  Round round;           // of the replica that held all commits before it
  uint64_t windows = 0;  // hash of what it was measured on
  std::string worker;    // who measured it
  bool own = false;      // for itself: the server had not asked
};

// Memory is bounded whatever peers send: by the constants below.
// Threads: thread-compatible.
class RunHistory {
 public:
  static constexpr size_t kEventsKept = 256;
  // Places that events made by peers never take from the others.
  static constexpr size_t kEventsReserved = 64;
  static constexpr size_t kPointsMax = 512;  // even
  static constexpr size_t kTextBytesMax = 200;
  static constexpr size_t kHeldOutMax = 128;  // even

  // The newest event. Its sequence number is given here, texts are cut and made fit for people. When
  // kEventsKept are there the oldest makes room: of those made by peers, while they have more than
  // kEventsKept − kEventsReserved places; else of all.
  const Event& Add(Event event);
  // The next committed round. `loss` may be NaN: nobody said one.
  void AddRound(uint64_t round, double loss, double stepsize);

  // The run's next held-out loss. When they are more than kHeldOutMax every second of them goes, but
  // for the first and the last.
  void AddHeldOut(HeldOut held_out);

  // Events with a larger sequence number, in order; a gap in the numbers is what was dropped.
  std::vector<Event> EventsAfter(uint64_t sequence) const;
  bool has_rounds() const { return !points_.empty(); }
  RoundSeries Series() const;
  const std::vector<HeldOut>& held_out() const { return held_out_; }  // in order

 private:
  struct Point {
    double loss_sum = 0, stepsize_sum = 0;
    uint64_t losses = 0, rounds = 0;
  };
  void Merge();

  std::deque<Event> events_;
  size_t by_peers_ = 0;  // of events_
  uint64_t events_seen_ = 0;
  // Invariant: every point but the last stands for rounds_per_point_ rounds.
  std::vector<Point> points_;
  uint64_t first_round_ = 0, rounds_per_point_ = 1;
  std::vector<HeldOut> held_out_;
};

}  // namespace signvote::run
