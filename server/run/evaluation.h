#pragma once
// Who measures the held-out loss for the run. One that can is asked, in a round that opens; it
// measures the replica of that round while rounds go on, and says what it found with a later ballot.
//
// When one is asked:
//   - in the first round, and in the first of each period of `every` rounds, unless one measures;
//   - in the next round when the one that measures is gone, or does not hear of rounds in time;
//   - when it has said nothing for more than a period: what it finds comes with the next ballot.
// Who is asked: of those that have a seat and can, the one that measured last as long as it is not
// much slower than the quickest; else the quickest, members before observers. Windows go before all
// that: those of the last loss if anybody can measure them, else those that most can, so that losses
// can be compared for as long as possible.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "server/round/types.h"
#include "server/round/view.h"

namespace signvote::run {

using round::WorkerId;

// Ownership:  values only.
// Threads:    thread-compatible; one thread drives it. Pure: a function of what it was told.
// Invariants: at most one is asked at a time; memory is bounded by the workers that are here.
class Evaluation {
 public:
  // What a worker says that it has measured.
  struct Measured {
    double loss = 0;
    double error = 0;  // its standard error
    Round round;       // of the replica that held all commits before it
    uint64_t windows = 0;
  };
  enum class Verdict {
    kRuns,     // what the server had asked for
    kItsOwn,   // sound, and nobody had asked
    kKnown,    // what it has said before: a ballot that is sent again says it again
    kRefused,  // no number, of no replica yet, or of windows that it did not join with
  };

  // `every`: rounds of a period; 0: nobody is ever asked.
  explicit Evaluation(uint64_t every) : every_(every) {}

  // A stream was accepted. `windows`: hash of those that it can measure; nullopt: none.
  void OnJoined(WorkerId worker, Incarnation incarnation, std::optional<uint64_t> windows);
  // Its live stream went.
  void OnGone(WorkerId worker) { able_.erase(worker); }

  // A round opens for the first time: whether somebody is to be asked, and can be. `seats`: of those
  // who hear of it at once. They and `members` are in order of WorkerId; O(log seats) unless somebody
  // is.
  bool Due(Round round, std::span<const round::Seat> seats) const;
  // Who is asked in that round. REQUIRES: Due().
  WorkerId Ask(Round round, std::span<const round::Seat> seats,
               std::span<const round::MemberView> members);
  // Whether this seat's RoundOpen of that round asks it: also when it is said again.
  bool Asks(Round round, const round::Seat& seat) const;

  // What a worker says that it has measured; `committed`: rounds so far.
  Verdict OnMeasured(WorkerId worker, const Measured& measured, Round committed);

  // Who was asked last, and is still here; nullopt: nobody.
  std::optional<WorkerId> evaluator() const;

  // One is asked again although another is quicker, unless it takes longer by this factor.
  static constexpr double kSlowerMax = 1.25;

 private:
  struct Able {
    Incarnation incarnation;
    uint64_t windows = 0;
  };
  struct Asked {
    WorkerId worker;
    Incarnation incarnation;
    Round round;
    bool answered = false;
  };
  // Those that have a seat and can measure, in order.
  std::vector<WorkerId> AbleOf(std::span<const round::Seat> seats) const;
  // The windows that a measurement should be on. REQUIRES: `able` is not empty.
  uint64_t WindowsFor(std::span<const WorkerId> able) const;

  // Constant after construction.
  const uint64_t every_;

  std::map<WorkerId, Able> able_;
  std::optional<Asked> asked_;
  std::optional<uint64_t> last_windows_;  // of the run's last loss
};

}  // namespace signvote::run
