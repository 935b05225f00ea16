#pragma once
// "Every so many rounds", "every so many minutes": how often something is to be done that a flag asks
// for, and when it is due. Pure.

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"

namespace signvote {

// At most one of the two is set; neither: never.
struct Every {
  std::optional<uint64_t> rounds;
  std::optional<Duration> time;
  bool never() const { return !rounds.has_value() && !time.has_value(); }
};

// "200": rounds; "90s", "10m", "2h": time; "0": never. INVALID_ARGUMENT says what is taken, and names
// `flag`.
absl::StatusOr<Every> ParseEvery(const std::string& flag, const std::string& text);

// When it is due. Threads: thread-compatible.
class EverySchedule {
 public:
  // Counts from `round` and `now` on.
  EverySchedule(Every every, Round round, Time now);
  // True once for each time that it is due, and never where no round has passed since. Rounds count at
  // multiples, also where several pass between two calls.
  bool Due(Round round, Time now);

 private:
  const Every every_;
  Round last_;
  Time next_;  // with every_.time
};

}  // namespace signvote
