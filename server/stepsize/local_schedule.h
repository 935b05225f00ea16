#pragma once
// How many minibatches each main round of a run takes, and which minibatch of the run each begins with:
// --local-steps. docs/algorithms/local_steps.md.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace signvote {

// Most minibatches that a main round may take. One beyond it is hours, in which nothing is heard.
inline constexpr uint32_t kLocalStepsMax = 4096;
// Fewer rounds with local steps are too few: what is lost against a vote on every minibatch is a matter
// of how often workers meet.
inline constexpr uint64_t kLocalRoundsFew = 40;

// Of a run of R main rounds: parts that follow one another, H_i minibatches a round in part i.
//
// Threads: immutable once made.
class LocalSchedule {
 public:
  // An ordinary run: a vote on each minibatch.
  LocalSchedule() = default;
  // "H", or "H0,H1@P1,H2@P2": H1 once P1 percent of the run's minibatches are taken. A part's share of
  // the minibatches is what is asked for, up to rounding to whole rounds. INVALID_ARGUMENT names what is
  // wrong and what is accepted. REQUIRES: main_rounds > 0 unless the text is "1".
  static absl::StatusOr<LocalSchedule> Parse(std::string_view text, uint64_t main_rounds);

  // Of a run of so many minibatches a worker, in place of its main rounds: their number, up to rounding and
  // one at least. INVALID_ARGUMENT: as Parse().
  static absl::StatusOr<uint64_t> RoundsOf(std::string_view text, uint64_t minibatches);

  // Some round takes several minibatches.
  bool on() const { return !parts_.empty(); }
  // H of this main round; beyond the last one, of the last.
  uint32_t StepsAt(uint64_t main_round) const;
  uint32_t largest() const;
  // Minibatches of all main rounds before this one.
  uint64_t Before(uint64_t main_round) const;
  // T, minibatches of all main rounds; 0: their number is unknown.
  uint64_t minibatches() const { return Before(main_rounds_); }
  uint64_t main_rounds() const { return main_rounds_; }
  // As Parse() reads it.
  const std::string& text() const { return text_; }

 private:
  struct Part {
    uint64_t first_round = 0;
    uint32_t steps = 1;
  };

  std::string text_ = "1";
  uint64_t main_rounds_ = 0;
  std::vector<Part> parts_;  // ascending; none: one minibatch a round
};

}  // namespace signvote
