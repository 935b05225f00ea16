#include "ctl/top_view.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ctl/format.h"
#include "ctl/rule_text.h"
#include "ctl/top_graph.h"
#include "ctl/top_table.h"
#include "ctl/top_text.h"

namespace signvote::ctl {
namespace {

// The rows from which on a part is shown.
constexpr int kRowsForHeldOut = 14, kRowsForSplit = 14, kRowsForEvents = 14, kRowsForGraph = 18,
              kRowsForRule = 18, kRowsForBits = 24, kRowsForSpace = 24;
constexpr int kColumnsForMain = 60;
constexpr int kRowsBesideGraph = 16, kGraphRowsMax = 8;
constexpr int kEventsMin = 3;
constexpr size_t kWarningRowsMax = 3;

Style PhaseStyle(v1::Status::Phase phase) {
  return phase == v1::Status::PHASE_ROUND_OPEN || phase == v1::Status::PHASE_ENDED
             ? Style::kGood
             : Style::kWarning;
}

// `parts` of a whole as columns of a bar `width` wide: the largest remainders get what rounding
// leaves over.
std::vector<size_t> Proportions(const std::vector<double>& parts, size_t width) {
  std::vector<size_t> columns(parts.size(), 0);
  double sum = 0;
  for (const double part : parts) sum += part;
  if (!(sum > 0) || !std::isfinite(sum)) return columns;
  std::vector<std::pair<double, size_t>> remainders;
  size_t given = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const double exact = parts[i] / sum * static_cast<double>(width);
    columns[i] = static_cast<size_t>(exact);
    given += columns[i];
    remainders.emplace_back(static_cast<double>(columns[i]) - exact, i);
  }
  std::sort(remainders.begin(), remainders.end());
  for (size_t i = 0; given < width && i < remainders.size(); ++i, ++given)
    ++columns[remainders[i].second];
  return columns;
}

std::string Repeated(const std::string& text, size_t count) {
  std::string out;
  for (size_t i = 0; i < count; ++i) out += text;
  return out;
}
// ---- the head ----

Line TitleLine(const TopModel& model, const TopView& view) {
  const v1::Status& status = model.status();
  LineBuilder line(view);
  line.Add("run ", Style::kDim).Add(status.run_id().empty() ? "-" : status.run_id(), Style::kBold);
  line.AddIfRoom({{"  " + view.server}});
  line.AddIfRoom({{"  up ", Style::kDim}, {SecondsText(status.uptime_seconds())}});
  line.AddIfRoom({{"  server ", Style::kDim}, {status.software_version()}});
  line.AddIfRoom({{"  epoch ", Style::kDim}, {std::to_string(status.epoch())}});
  const std::string clock = ClockText(view.unix_seconds, view.utc_offset_seconds);
  if (line.room() >= clock.size() + 2) line.Add(Right(clock, line.room()), Style::kDim);
  return line.Take();
}

Line ProgressLine(const TopModel& model, const TopView& view) {
  const v1::Status& status = model.status();
  LineBuilder line(view);
  std::string phase = PhaseText(status.phase());
  if (status.attempt() > 0) phase += absl::StrFormat(", attempt %d", status.attempt());
  line.Add(phase, PhaseStyle(status.phase()));
  if (view.frozen) line.Add(" FROZEN", Style::kWarning);
  line.Add("  ").Add(Grouped(status.main_round()), Style::kBold);
  if (status.main_rounds() > 0) {
    line.Add(" of " + Grouped(status.main_rounds()) + " ");
    if (view.columns >= kColumnsForMain) line.Add("main ");
  } else {
    line.Add(" main rounds");
  }
  if (status.main_rounds() == 0) return line.Take();  // no end to draw the way to
  const double done = std::clamp(
      static_cast<double>(status.main_round()) / static_cast<double>(status.main_rounds()), 0.0,
      1.0);
  std::string after = absl::StrFormat(" %3.0f %%", std::floor(100 * done));
  const bool going_on = !model.ended() && status.main_round() < status.main_rounds();
  if (going_on && std::isfinite(status.seconds_left())) {
    const std::string left = "  " + SecondsText(status.seconds_left()) + " left";
    if (line.room() >= TextWidth(after + left)) after += left;
  }
  constexpr size_t kBarMin = 8;
  if (line.room() >= TextWidth(after) + kBarMin) {
    const size_t width = line.room() - TextWidth(after);
    const auto full = static_cast<size_t>(done * static_cast<double>(width));
    const bool utf8 = view.charset == Charset::kUtf8;
    line.Add(Repeated(utf8 ? "█" : "#", full), Style::kGraph);
    line.Add(Repeated(utf8 ? "░" : ".", width - full), Style::kDim);
  }
  line.Add(after);
  return line.Take();
}

Line LossLine(const TopModel& model, const TopView& view) {
  const v1::Status& status = model.status();
  LineBuilder line(view);
  line.Add("loss ", Style::kDim).Add(NumberOrDash("%.4f", status.loss()), Style::kBold);
  line.AddIfRoom({{"  stepsize ", Style::kDim},
                  {NumberOrDash("%.4g", status.round() == 0 ? kUnknown : status.stepsize())}});
  line.AddIfRoom({{" (" + status.rule() + ", " + status.direction() + ")"}});
  line.AddIfRoom(
      {{"  " + NumberOrDash("%.1f", model.rounds_per_second())}, {" rounds/s", Style::kDim}});
  line.AddIfRoom(
      {{"  d ", Style::kDim}, {status.coordinates() == 0 ? "-" : Grouped(status.coordinates())}});
  line.AddIfRoom({{"  joined ", Style::kDim},
                  {Grouped(status.joins())},
                  {"  lost ", Style::kDim},
                  {Grouped(status.losses())},
                  {"  abstentions ", Style::kDim},
                  {Grouped(status.abstentions())}});
  return line.Take();
}

// By what the stepsize's rule goes.
void AddRule(const TopModel& model, const TopView& view, std::vector<Line>* out) {
  const std::string race = RaceText(model.status().race());
  const std::string numbers = RuleText(model.status());
  if (race.empty() && numbers.empty()) return;
  LineBuilder line(view);
  if (!race.empty()) {
    line.Add("race ", Style::kDim);
    line.Add(race, model.status().race().over() ? Style::kPlain : Style::kWarning);
    if (!numbers.empty()) line.Add("  ");
  }
  line.Add(numbers);
  out->push_back(line.Take());
}

// What the stepsize's rule is short of. On a small screen only how it begins.
void AddWarning(const TopModel& model, const TopView& view, std::vector<Line>* out) {
  const std::string& warning = model.status().stepsize_warning();
  if (warning.empty()) return;
  std::vector<std::string> lines = {warning};
  if (view.rows >= kRowsForSpace) lines = Wrapped(warning, static_cast<size_t>(view.columns));
  while (lines.size() > kWarningRowsMax) {  // the last one is cut
    const std::string rest = lines.back();
    lines.pop_back();
    lines.back() += " " + rest;
  }
  for (const std::string& text : lines) {
    LineBuilder line(view);
    line.Add(text, Style::kWarning);
    out->push_back(line.Take());
  }
}

// From the first loss on the same windows to the last: others are of another series.
Line HeldOutLine(const TopModel& model, const TopView& view) {
  const bool utf8 = view.charset == Charset::kUtf8;
  const v1::HeldOut& last = model.held_out().back();
  const v1::HeldOut& first = model.first_comparable();
  LineBuilder line(view);
  line.Add("held out ", Style::kDim);
  if (first.round() != last.round()) {
    line.Add(NumberOrDash("%.4f", first.loss()) + (utf8 ? " → " : " -> "));
  }
  line.Add(NumberOrDash("%.4f", last.loss()), Style::kBold)
      .Add((utf8 ? " ± " : " +- ") + NumberOrDash("%.4f", last.error()));
  line.AddIfRoom({{"  round ", Style::kDim}, {Grouped(last.round())}});
  line.AddIfRoom({{"  by ", Style::kDim}, {last.worker()}});
  line.AddIfRoom({{"  windows ", Style::kDim}, {absl::StrFormat("%016x", last.windows())}});
  return line.Take();
}

Line SavingsLine(const TopModel& model, const TopView& view) {
  const Savings savings = SavingsOf(model.status().wire());
  LineBuilder line(view);
  line.Add("saved ", Style::kDim).Add(BytesText(savings.saved_bytes), Style::kBold);
  if (model.status().wire().ballots() == 0) return line.Take();
  line.AddIfRoom({{"  up ", Style::kDim},
                  {BytesText(savings.up_per_ballot)},
                  {" a ballot, ", Style::kDim},
                  {Times(savings.up_ratio), Style::kGood}});
  line.AddIfRoom({{"  down ", Style::kDim},
                  {BytesText(savings.down_per_ballot)},
                  {", ", Style::kDim},
                  {Times(savings.down_ratio), Style::kGood}});
  line.AddIfRoom({{" less than fp32", Style::kDim}});
  const WireRate rate = model.Rate();
  line.AddIfRoom({{"  now ", Style::kDim},
                  {RateText(rate.up)},
                  {" up ", Style::kDim},
                  {RateText(rate.down)},
                  {" down", Style::kDim}});
  return line.Take();
}

// What rounds move for each parameter and minibatch of a worker.
bool KnowsBits(const v1::Status& status) { return status.up_bits() > 0 && status.down_bits() > 0; }

Line BitsLine(const TopModel& model, const TopView& view) {
  const v1::Status& status = model.status();
  LineBuilder line(view);
  line.Add("bits ", Style::kDim).Add(absl::StrFormat("%.3g", status.up_bits()), Style::kBold);
  line.AddIfRoom({{" up ", Style::kDim}, {absl::StrFormat("%.3g", status.down_bits())}});
  line.AddIfRoom({{" down a parameter and minibatch", Style::kDim}});
  line.AddIfRoom({{"  minibatches ", Style::kDim}, {Grouped(status.minibatches())}});
  return line.Take();
}

struct Part {
  const char* word;
  const char *utf8, *ascii;
  Style style;
  double seconds;
};

// Each part has a character of its own, so that the bar can be read without colours.
std::vector<Part> PartsOf(const v1::TimeSplit& split) {
  return {{"compute", "█", "C", Style::kCompute, split.compute()},
          {"wait", "░", "w", Style::kWait, split.wait()},
          {"tally", "▓", "T", Style::kTally, split.tally()},
          {"commit", "▒", "m", Style::kCommit, split.commit()},
          {"apply", "▞", "A", Style::kApply, split.worker_apply()}};
}

void AddSplit(const TopModel& model, const TopView& view, std::vector<Line>* out) {
  const v1::TimeSplit& split = model.status().time_split();
  const bool utf8 = view.charset == Charset::kUtf8;
  const std::vector<Part> parts = PartsOf(split);
  std::vector<double> seconds;
  for (const Part& part : parts)
    seconds.push_back(std::isfinite(part.seconds) ? std::max(0.0, part.seconds) : 0);
  LineBuilder bar(view);
  const bool known = model.status().round() > 0;
  bar.Add("round ", Style::kDim)
      .Add(known ? SecondsText(split.round()) : "-", Style::kBold)
      .Add("  ");
  const std::vector<size_t> columns = Proportions(seconds, bar.room());
  for (size_t i = 0; i < parts.size(); ++i) {
    bar.Add(Repeated(utf8 ? parts[i].utf8 : parts[i].ascii, columns[i]), parts[i].style);
  }
  out->push_back(bar.Take());
  std::vector<std::vector<Span>> figures;
  size_t width = 0;
  for (const Part& part : parts) {
    figures.push_back({{std::string(utf8 ? part.utf8 : part.ascii) + " ", part.style},
                       {std::string(part.word) + " ", Style::kDim},
                       {known ? SecondsText(part.seconds) : "-"}});
    for (const Span& span : figures.back()) width += TextWidth(span.text);
  }
  const bool wide = width + 2 * (parts.size() - 1) <= static_cast<size_t>(view.columns);
  LineBuilder legend(view);
  for (size_t i = 0; i < figures.size(); ++i) {
    if (i > 0) figures[i].front().text.insert(0, wide ? "  " : " ");
    legend.AddIfRoom(figures[i]);
  }
  legend.AddIfRoom({{"  (server's own apply ", Style::kDim},
                    {known ? SecondsText(split.apply()) : "-"},
                    {", beside)", Style::kDim}});
  out->push_back(legend.Take());
}
// ---- the rest ----

void AddEvents(const TopModel& model, const TopView& view, size_t rows, std::vector<Line>* out) {
  LineBuilder head(view);
  head.Add(Left("events, the latest first", head.room()), Style::kTitle);
  out->push_back(head.Take());
  const std::deque<v1::Event>& events = model.events();
  for (size_t i = 0; i < std::min(rows, events.size()); ++i) {
    const v1::Event& event = events[events.size() - 1 - i];
    LineBuilder line(view);
    line.Add(ClockText(event.unix_time(), view.utc_offset_seconds) + "  ", Style::kDim);
    line.Add(Left(absl::StrCat("round ", Grouped(event.round())), 15), Style::kDim);
    line.Add(EventText(event), WordsOf(event.kind()).style);
    out->push_back(line.Take());
  }
  if (events.empty() && rows > 0) {
    LineBuilder line(view);
    line.Add("none yet", Style::kDim);
    out->push_back(line.Take());
  }
}

Line FooterLine(const TopModel& model, const TopView& view, const Frame& frame) {
  LineBuilder line(view);
  if (model.ended()) line.Add("the run has ended  ", Style::kBold);
  const auto key = [&](const char* name, const std::string& what) {
    line.AddIfRoom({{name, Style::kBold}, {" " + what + "  ", Style::kDim}});
  };
  key("q", "quit");
  key("h", "help");
  const auto workers = static_cast<size_t>(model.status().workers_size());
  if (frame.workers_shown < workers) {
    key(view.charset == Charset::kUtf8 ? "↑↓" : "arrows",
        absl::StrFormat("workers %d-%d of %d", frame.first_worker + 1,
                        frame.first_worker + frame.workers_shown, workers));
  }
  key("s", std::string("sort: ") + SortKeyWord(view.sort) + (view.reversed ? ", reversed" : ""));
  key("p", view.frozen ? "go on" : "freeze");
  return line.Take();
}

Line LostLine(const TopModel& model, const TopView& view) {
  LineBuilder line(view);
  const TopModel::Lost& lost = *model.lost();
  const double gone_seconds = ToSeconds(view.now - lost.since);
  line.Add(absl::StrFormat("reconnecting to %s since %s (%s)", view.server,
                           ClockText(view.unix_seconds - gone_seconds, view.utc_offset_seconds),
                           SecondsText(std::floor(gone_seconds))),
           Style::kBad);
  line.AddIfRoom({{"; what is shown is from before", Style::kDim}});
  return line.Take();
}

std::vector<Line> HelpLines(const TopView& view) {
  constexpr std::array kHelp = {
      std::pair("q, Ctrl-C", "quit"),
      std::pair("h, ?", "this page; any key leaves it"),
      std::pair("s, S", "sort workers by the next, the previous column"),
      std::pair("r", "reverse the order"),
      std::pair("arrows, PgUp, PgDn", "scroll the workers; Home and End too"),
      std::pair("p", "freeze what is shown, and go on"),
      std::pair("", ""),
      std::pair("saved", "against sending fp32 both ways; measured on the sockets, TLS included"),
      std::pair("race", "short trials that choose a stepsize; no main rounds"),
      std::pair("held out", "loss on windows that nobody trains on, and its standard error"),
      std::pair("wait", "first complete ballot to the last needed one"),
      std::pair("apply", "a commit, at the workers"),
      std::pair("agree", "share of a worker's bits that equal the verdict"),
      std::pair("arrival", "recent median, round open to a worker's complete ballot"),
  };
  std::vector<Line> lines;
  for (const auto& [key, text] : kHelp) {
    LineBuilder line(view);
    line.Add(Left(key, 20), Style::kBold).Add(text);
    lines.push_back(line.Take());
  }
  return lines;
}

}  // namespace

std::string PlainText(const Line& line) {
  std::string out;
  for (const Span& span : line) out += span.text;
  return out;
}

Frame RenderTop(const TopModel& model, const TopView& view) {
  Frame frame;
  std::vector<Line>& lines = frame.lines;
  const int rows = view.rows;
  if (rows <= 0 || view.columns <= 0) return frame;
  if (rows < kRowsMin || view.columns < kColumnsMin) {
    LineBuilder line(view);
    line.Add(absl::StrFormat("too small: %dx%d, needs %dx%d", view.columns, rows, kColumnsMin,
                             kRowsMin));
    lines.push_back(line.Take());
    return frame;
  }
  if (view.help) {
    lines = HelpLines(view);
    if (lines.size() > static_cast<size_t>(rows)) lines.resize(static_cast<size_t>(rows));
    return frame;
  }
  if (!model.has_status()) {
    LineBuilder line(view);
    line.Add("asking " + view.server, Style::kDim);
    lines.push_back(line.Take());
    return frame;
  }
  const bool space = rows >= kRowsForSpace;
  const auto blank = [&] {
    if (space) lines.emplace_back();
  };
  lines.push_back(TitleLine(model, view));
  if (model.lost().has_value() && !model.ended()) lines.push_back(LostLine(model, view));
  lines.push_back(ProgressLine(model, view));
  lines.push_back(LossLine(model, view));
  if (rows >= kRowsForRule) AddRule(model, view, &lines);
  AddWarning(model, view, &lines);
  if (rows >= kRowsForHeldOut && !model.held_out().empty()) {
    lines.push_back(HeldOutLine(model, view));
  }
  lines.push_back(SavingsLine(model, view));
  if (rows >= kRowsForBits && KnowsBits(model.status())) lines.push_back(BitsLine(model, view));
  if (rows >= kRowsForSplit) AddSplit(model, view, &lines);
  blank();
  if (rows >= kRowsForGraph) {
    AddGraph(model, view, std::clamp((rows - kRowsBesideGraph) / 4, 1, kGraphRowsMax), &lines);
    blank();
  }
  // Heads, blank line and footer taken off, workers get what they need and events the rest, but
  // never less than few.
  const int left = rows - static_cast<int>(lines.size()) - 1;
  const bool events = rows >= kRowsForEvents;
  const int events_min = events ? (space ? 2 : 1) + kEventsMin : 0;
  const int workers =
      std::max(1, std::min(std::max(1, model.status().workers_size()), left - 1 - events_min));
  AddTable(model, view, static_cast<size_t>(workers), &frame);
  if (events) {
    blank();
    const int rest = rows - static_cast<int>(lines.size()) - 2;
    if (rest > 0) AddEvents(model, view, static_cast<size_t>(rest), &lines);
  }
  if (!view.keys) return frame;
  while (static_cast<int>(lines.size()) < rows - 1) lines.emplace_back();
  lines.push_back(FooterLine(model, view, frame));
  return frame;
}
}  // namespace signvote::ctl
