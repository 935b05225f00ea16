#include "worker/train/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace signvote {
namespace {

constexpr Duration kTerminalInterval = std::chrono::milliseconds(100);
constexpr double kSmoothing = 0.1;
constexpr Duration kPatience = std::chrono::seconds(1);
// Some seconds of a terminal: what is older than that need not be shown to whoever reads again.
constexpr size_t kLinesMax = 64;

std::string Scaled(double value, const char* const* units, size_t count) {
  size_t unit = 0;
  while (unit + 1 < count && std::abs(value) >= 999.5) {
    value /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.*f%s", unit == 0 || value >= 99.5 ? 0 : 1, value, units[unit]);
}

// Columns of the terminal behind `out`; 0: it is none, or does not say.
size_t ColumnsOf(int out) {
  winsize size{};
  return ::ioctl(out, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

// Where nobody reads any more (`| head`) there is nobody to tell either.
void WriteAll(int out, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(out, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return;
    text.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace

std::string ShortCount(double value) {
  constexpr const char* kUnits[] = {"", "k", "M", "G", "T"};
  return Scaled(value, kUnits, std::size(kUnits));
}

std::string ShortBytes(double bytes) {
  constexpr const char* kUnits[] = {" B", " kB", " MB", " GB", " TB"};
  return Scaled(bytes, kUnits, std::size(kUnits));
}

std::string ShortSeconds(double seconds) {
  const int64_t whole = std::llround(std::clamp(seconds, 0.0, 1e7));
  if (whole < 3600) return absl::StrFormat("%d:%02d", whole / 60, whole % 60);
  return absl::StrFormat("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60);
}

Progress::Progress(ProgressStyle style, int out, Clock* clock, Duration interval, std::string name)
    : style_(style), out_(out), clock_(clock), interval_(interval), name_(std::move(name)) {
  if (style_ == ProgressStyle::kOff) return;
  // A terminal's next line takes the place of those that are lost.
  const bool told = style_ == ProgressStyle::kLines;
  writer_.emplace([out](std::string_view lines) { WriteAll(out, lines); },
                  [told](uint64_t count) {
                    return told ? absl::StrCat("(", count, " lines were not read in time)\n")
                                : std::string();
                  },
                  LineWriter::Options{.lines_max = kLinesMax, .patience = kPatience});
}

void Progress::OnJoined(const RunInfo& run) {
  main_rounds_ = run.main_rounds;
  coordinates_ = run.layout.coordinates();
}

std::string Progress::Line(const RoundReport& round, const SessionStats& stats) const {
  std::string of_main = absl::StrCat(round.main_round);
  if (main_rounds_.has_value()) absl::StrAppend(&of_main, "/", *main_rounds_);
  // Trials of stepsizes, and rounds that moved nothing, are no main rounds.
  const uint64_t rounds = round.round.value() + 1;
  std::string line = rounds == round.main_round
                         ? absl::StrCat(name_, " round ", of_main)
                         : absl::StrCat(name_, " round ", rounds, " (main ", of_main, ")");
  if (round.abstained.has_value()) {
    absl::StrAppend(&line, " abstained");
  } else {
    absl::StrAppend(&line, absl::StrFormat(" loss %.3f", round.scalars.loss));
  }
  if (held_out_.has_value()) {
    absl::StrAppend(&line,
                    absl::StrFormat(" held-out %.3f±%.3f", held_out_->loss, held_out_->error));
  }
  absl::StrAppend(&line, absl::StrFormat(" stepsize %.1e", round.stepsize));
  if (seconds_per_round_ > 0) {
    absl::StrAppend(&line, " ", ShortCount(targets_per_round_ / seconds_per_round_), " targets/s");
  }
  absl::StrAppend(&line, " ", round.members, round.members == 1 ? " member" : " members");
  const double wire = static_cast<double>(stats.wire_sent_bytes + stats.wire_received_bytes);
  const double fp32 = 4.0 * static_cast<double>(coordinates_) *
                      static_cast<double>(stats.rounds_voted + stats.rounds_received);
  if (wire > 0 && fp32 > wire) {
    absl::StrAppend(&line,
                    absl::StrFormat(" saved %.0fx (%s)", fp32 / wire, ShortBytes(fp32 - wire)));
  }
  const uint64_t left =
      main_rounds_.has_value() && !round.run_done && *main_rounds_ > round.main_round
          ? *main_rounds_ - round.main_round
          : 0;
  if (seconds_per_round_ > 0 && left > 0)
    absl::StrAppend(&line, " ETA ", ShortSeconds(static_cast<double>(left) * seconds_per_round_));
  return line;
}

void Progress::OnRound(const RoundReport& round, const SessionStats& stats) {
  const Time now = clock_->Now();
  if (round.held_out.has_value()) held_out_ = round.held_out;
  // Rounds per second from one commit to the next, so that waiting between rounds counts.
  const double seconds =
      last_round_.has_value() ? ToSeconds(now - *last_round_) : round.round_took_seconds;
  const double weight = seconds_per_round_ == 0 ? 1.0 : kSmoothing;
  seconds_per_round_ += weight * (seconds - seconds_per_round_);
  targets_per_round_ += weight * (static_cast<double>(round.targets) - targets_per_round_);
  last_round_ = now;
  if (style_ == ProgressStyle::kOff) return;
  const Duration interval = style_ == ProgressStyle::kTerminal ? kTerminalInterval : interval_;
  if (last_print_.has_value() && now - *last_print_ < interval && !round.run_done) return;
  last_print_ = now;
  std::string line = Line(round, stats);
  if (style_ == ProgressStyle::kTerminal) {
    // A line that wraps could not be rewritten; the last column stays free, because writing there
    // may wrap.
    if (const size_t columns = ColumnsOf(out_); columns > 0 && line.size() >= columns)
      line.resize(columns - 1);
    line = absl::StrCat("\r", line, "\x1b[K");  // clears what a longer line left
  } else {
    line += '\n';
  }
  (void)writer_->Write(std::move(line));  // false: counted, and told of
}

void Progress::Finish() {
  if (!writer_.has_value()) return;
  if (style_ == ProgressStyle::kTerminal && last_print_.has_value()) (void)writer_->Write("\n");
  (void)writer_->Flush(kPatience);  // false: nobody reads
}

}  // namespace signvote
