#include "ctl/top_lines.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "ctl/format.h"
#include "ctl/top_text.h"

namespace signvote::ctl {
namespace {

// Widths of the columns after the time; each has a space before it.
constexpr char kLinesFormat[] = "%-19s %9s %9s %9s %-19s %10s %10s %7s %9s %8s %12s %7s %7s %9s\n";

// Rounds of trials so far, and how many there may be as long as they go on.
std::string RaceWord(const v1::Race& race) {
  if (race.rounds_max() == 0) return "-";
  std::string rounds = std::to_string(race.rounds());
  if (!race.over()) rounds += "/" + std::to_string(race.rounds_max());
  return rounds;
}

}  // namespace

std::string LinesHeader() {
  return absl::StrFormat(kLinesFormat, "TIME", "MAIN", "OF", "RACE", "PHASE", "LOSS", "STEPSIZE",
                         "MEMBERS", "OBSERVERS", "ROUNDS/S", "LEFT", "UP", "DOWN", "SAVED");
}

std::string LinesRow(const TopModel& model, double unix_seconds, int64_t utc_offset_seconds) {
  const v1::Status& status = model.status();
  int members = 0, observers = 0;
  for (const v1::Worker& worker : status.workers()) {
    if (!worker.connected()) continue;
    ++(worker.role() == v1::Worker::ROLE_OBSERVER ? observers : members);
  }
  const Savings savings = SavingsOf(status.wire());
  const bool going_on = !model.ended() && status.main_round() < status.main_rounds();
  std::string phase = PhaseText(status.phase());
  std::replace(phase.begin(), phase.end(), ' ', '-');  // one word a column
  const auto word = [](std::string text) {
    text.erase(std::remove(text.begin(), text.end(), ' '), text.end());
    return text;
  };
  return absl::StrFormat(kLinesFormat, DateText(unix_seconds, utc_offset_seconds),
                         std::to_string(status.main_round()), std::to_string(status.main_rounds()),
                         RaceWord(status.race()), phase, NumberOrDash("%.4f", status.loss()),
                         NumberOrDash("%.4g", status.round() == 0 ? kUnknown : status.stepsize()),
                         std::to_string(members), std::to_string(observers),
                         NumberOrDash("%.1f", model.rounds_per_second()),
                         word(SecondsText(going_on ? status.seconds_left() : kUnknown)),
                         word(Times(savings.up_ratio)), word(Times(savings.down_ratio)),
                         word(BytesText(savings.saved_bytes)));
}

std::string LinesEvent(const v1::Event& event, int64_t utc_offset_seconds) {
  return absl::StrFormat("%-19s %9d event: %s\n", DateText(event.unix_time(), utc_offset_seconds),
                         event.round(), EventText(event));
}

std::string LinesNote(const std::string& text, double unix_seconds, int64_t utc_offset_seconds) {
  return absl::StrFormat("%-19s %9s top: %s\n", DateText(unix_seconds, utc_offset_seconds), "-",
                         text);
}
}  // namespace signvote::ctl
