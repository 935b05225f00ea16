#pragma once
// How often the run's state may be fetched: each time costs everybody the whole model's way over the
// server's link.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/clock.h"
#include "server/run/rate_limit.h"

namespace signvote::run {

// A budget for each name, whatever streams it comes with, and one for each host, which may have as
// many names as the run has places. The host's is for runs that ask for neither tokens nor
// certificates, where a liar invents names: it then spends its own host's budget and nobody else's.
//
// The budgets are for honest workers whose machine goes away every minute, twice as large as those
// need, for as long as it lasts; a liar costs at most twice as much.
//
// Memory:  that of two RateLimits.
// Threads: thread-compatible. Pure: time comes in.
class FetchBudget {
 public:
  struct Options {
    uint32_t burst = 16;                         // fetches of a name that was not here for long
    Duration refill = std::chrono::seconds(30);  // one more comes back in this time
  };

  // REQUIRES: burst > 0, refill > 0.
  FetchBudget(const Options& options, uint32_t workers_max);

  // OK: counted. RESOURCE_EXHAUSTED: nothing is left, the sentence says when there will be.
  absl::Status Take(const std::string& name, const std::string& host, Time now);

 private:
  RateLimit names_, hosts_;
};

}  // namespace signvote::run
