#include "server/stepsize/local_schedule.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/check.h"
#include "common/status.h"

namespace signvote {
namespace {

absl::Status Bad(std::string_view text, const std::string& why) {
  return absl::InvalidArgumentError(
      absl::StrCat("--local-steps ", ToAbsl(text), ": ", why,
                   "; give minibatches a round, such as 16, or 16,96@25 for 96 once 25 % of the "
                   "run's minibatches are taken"));
}

struct Asked {
  uint32_t steps = 0;
  double from_percent = 0;
};

absl::StatusOr<std::vector<Asked>> ParseParts(std::string_view text) {
  std::vector<Asked> parts;
  for (const absl::string_view word : absl::StrSplit(ToAbsl(text), ',')) {
    const std::vector<absl::string_view> halves = absl::StrSplit(word, '@');
    Asked part;
    if (!absl::SimpleAtoi(halves[0], &part.steps) || part.steps == 0 ||
        part.steps > kLocalStepsMax) {
      return Bad(text, absl::StrCat("'", halves[0], "' is no number from 1 to ", kLocalStepsMax));
    }
    if (halves.size() != (parts.empty() ? 1u : 2u)) {
      return Bad(text, parts.empty() ? "the first part begins with the run, and has no @"
                                     : absl::StrCat("'", word, "' does not say from when on"));
    }
    if (!parts.empty()) {
      if (!absl::SimpleAtod(halves[1], &part.from_percent) ||
          !(part.from_percent > parts.back().from_percent && part.from_percent < 100)) {
        return Bad(text, absl::StrCat("'", halves[1],
                                      "' is no percentage above the one before it and below 100"));
      }
    }
    parts.push_back(part);
  }
  return parts;
}

// A part of the share f of the minibatches takes f/H rounds for each: 100 times the sum of these, up to
// and with every part.
std::vector<double> RoundsUpTo(const std::vector<Asked>& asked) {
  std::vector<double> rounds;
  double sum = 0;
  for (size_t i = 0; i < asked.size(); ++i) {
    const double end = i + 1 < asked.size() ? asked[i + 1].from_percent : 100;
    sum += (end - asked[i].from_percent) / static_cast<double>(asked[i].steps);
    rounds.push_back(sum);
  }
  return rounds;
}

}  // namespace

absl::StatusOr<uint64_t> LocalSchedule::RoundsOf(std::string_view text, uint64_t minibatches) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<Asked> asked, ParseParts(text));
  const double rounds = static_cast<double>(minibatches) * RoundsUpTo(asked).back() / 100;
  return std::max<uint64_t>(1, static_cast<uint64_t>(std::llround(rounds)));
}

absl::StatusOr<LocalSchedule> LocalSchedule::Parse(std::string_view text, uint64_t main_rounds) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<Asked> asked, ParseParts(text));
  LocalSchedule schedule;
  schedule.text_ = std::string(text);
  schedule.main_rounds_ = main_rounds;
  if (asked.size() == 1 && asked[0].steps == 1) return schedule;
  SIGNVOTE_CHECK(main_rounds > 0);
  for (const Asked& part : asked)
    if (part.steps == 1) return Bad(text, "a vote on every minibatch goes with no other part");
  const std::vector<double> rounds_up_to = RoundsUpTo(asked);
  uint64_t first = 0;
  for (size_t i = 0; i < asked.size(); ++i) {
    schedule.parts_.push_back({.first_round = first, .steps = asked[i].steps});
    const auto end = static_cast<uint64_t>(
        std::llround(static_cast<double>(main_rounds) * rounds_up_to[i] / rounds_up_to.back()));
    if (end <= first) {
      return Bad(text, absl::StrCat("no round of ", main_rounds, " is left for ", asked[i].steps,
                                    " minibatches a round"));
    }
    first = end;
  }
  return schedule;
}

uint32_t LocalSchedule::StepsAt(uint64_t main_round) const {
  uint32_t steps = 1;
  for (const Part& part : parts_) {
    if (part.first_round <= main_round) steps = part.steps;
  }
  return steps;
}

uint32_t LocalSchedule::largest() const {
  uint32_t largest = 1;
  for (const Part& part : parts_) largest = std::max(largest, part.steps);
  return largest;
}

uint64_t LocalSchedule::Before(uint64_t main_round) const {
  if (parts_.empty()) return main_round;
  uint64_t minibatches = 0;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const uint64_t end = i + 1 < parts_.size() ? parts_[i + 1].first_round : main_round;
    const uint64_t until = std::min(end, main_round);
    if (until > parts_[i].first_round)
      minibatches += (until - parts_[i].first_round) * uint64_t{parts_[i].steps};
  }
  return minibatches;
}

}  // namespace signvote
