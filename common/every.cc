#include "common/every.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace signvote {
namespace {

constexpr uint64_t kRoundsMax = uint64_t{1} << 40;
constexpr uint64_t kSecondsMax = 366 * 24 * 3600;

uint64_t SecondsOf(char unit) {
  switch (unit) {
    case 's':
      return 1;
    case 'm':
      return 60;
    case 'h':
      return 3600;
    default:
      return 0;
  }
}

}  // namespace

absl::StatusOr<Every> ParseEvery(const std::string& flag, const std::string& text) {
  const auto refused = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " '", text,
                     "' is neither a number of rounds (200) nor a time of at most a "
                     "year in seconds, minutes or hours (90s, 10m, 2h)"));
  };
  const uint64_t unit = text.empty() ? 0 : SecondsOf(text.back());
  const std::string digits = unit == 0 ? text : text.substr(0, text.size() - 1);
  uint64_t count = 0;
  if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos ||
      !absl::SimpleAtoi(digits, &count)) {
    return refused();
  }
  if (count == 0) return Every{};
  if (unit == 0)
    return count <= kRoundsMax ? absl::StatusOr<Every>(Every{.rounds = count}) : refused();
  if (count > kSecondsMax / unit) return refused();
  return Every{.time = std::chrono::seconds(static_cast<int64_t>(count * unit))};
}

EverySchedule::EverySchedule(Every every, Round round, Time now)
    : every_(every), last_(round), next_(now + every.time.value_or(Duration::zero())) {}

bool EverySchedule::Due(Round round, Time now) {
  if (round <= last_) return false;
  if (every_.rounds.has_value()) {
    if (round.value() / *every_.rounds == last_.value() / *every_.rounds) return false;
  } else if (every_.time.has_value()) {
    if (now < next_) return false;
    next_ = now + *every_.time;
  } else {
    return false;
  }
  last_ = round;
  return true;
}

}  // namespace signvote
