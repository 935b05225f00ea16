#include "common/hold.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr Duration kLookEvery = std::chrono::milliseconds(100);
constexpr Duration kAgainFirst = std::chrono::seconds(5);
constexpr Duration kAgainLongest = std::chrono::seconds(60);

bool CanBeMended(const absl::Status& status) {
  return ExitCodeFor(status) == ExitCode::kBadInput && !absl::IsDataLoss(status);
}

}  // namespace

absl::Status WriteOrHold(Clock* clock, const HoldOptions& options,
                         const std::function<absl::Status()>& write) {
  const bool stopped_before = options.stop_requested();
  const Time until = clock->Now() + options.linger;
  Duration again = kAgainFirst;
  while (true) {
    const absl::Status status = write();
    const Time now = clock->Now();
    const bool gives_up = now >= until || (!stopped_before && options.stop_requested());
    if (status.ok() || gives_up || !CanBeMended(status)) return status;
    const Time next = std::min(until, now + again);
    again = std::min(again * 2, kAgainLongest);
    LogError(absl::StrCat(options.what, ": it is held and tried again; ", options.remedy),
             {{"error", Describe(status)},
              {"held_for_seconds", ToSeconds(until - now)},
              {"again_in_seconds", ToSeconds(next - now)}});
    while (clock->Now() < next && !options.take_save() &&
           (stopped_before || !options.stop_requested())) {
      clock->SleepFor(std::min<Duration>(kLookEvery, next - clock->Now()));
    }
  }
}

}  // namespace signvote
