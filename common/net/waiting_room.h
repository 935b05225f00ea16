#pragma once
// Connections of which nobody knows yet whose they are: a bounded number of places, and who goes
// when all of them are taken.
//
// Whoever opens connections as fast as they are closed takes every place that there is, so a bound
// alone locks everybody else out. Here each who comes gets a place, and one who has one goes: of
// kDraws drawn at random the one who came first. At most `places` go in any `patience`: a place lasts
// that long on average, whatever the rush, and the next ones wait outside.
//
// Where a share u of the places came later than one, it goes next with probability kDraws u^(kDraws−1)
// / places, and has come so far with 1 − u^kDraws: a handshake of a quarter of `patience` succeeds 99
// times in 100, one of half 93. Who stalls goes, however many stall; nobody can arrange to be kept, and
// nobody far away goes for certain.
//
// Threads:    thread-compatible. Pure: time and chance come in.
// Invariants: size() <= places; MayTurnAwayAt() never goes back.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/clock.h"
#include "common/rng.h"

namespace signvote {

class WaitingRoom {
 public:
  // Grows in the order of coming.
  using Id = uint64_t;
  struct Options {
    size_t places = 1;
    Duration patience = std::chrono::milliseconds(500);
  };
  static constexpr int kDraws = 4;
  // Who was not turned away although it might have been does so later, but at most this much at once:
  // timers are coarser than the time between two.
  static constexpr Duration kBurst = std::chrono::milliseconds(20);

  // REQUIRES: options.places > 0.
  WaitingRoom(Options options, Rng rng);

  size_t size() const { return seats_.size(); }
  bool full() const { return seats_.size() >= options_.places; }

  // REQUIRES: !full(), and `id` above every earlier one.
  void Enter(Id id);
  // False: it is not here.
  bool Leave(Id id);
  // Who has to go, and is gone from here. nullopt: nobody is here, or MayTurnAwayAt() is still to come.
  std::optional<Id> TurnAway(Time now);
  // The same whatever the time.
  std::optional<Id> TurnAwayAtOnce();
  Time MayTurnAwayAt() const { return next_; }
  // One after the other, each in its turn, for whoever looks at a few at a time. nullopt: nobody is here.
  std::optional<Id> LookAtNext();

 private:
  const Options options_;
  const Duration period_;  // from one who is turned away to the next
  Rng rng_;
  std::vector<Id> seats_;
  absl::flat_hash_map<Id, size_t> seat_of_;
  size_t looked_at_ = 0;
  Time next_;
};

}  // namespace signvote
