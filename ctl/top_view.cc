#include "ctl/top_view.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ctl/format.h"

namespace signvote::ctl {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kDaySeconds = 86'400;

// The rows from which on a part is shown.
constexpr int kRowsForSplit = 14, kRowsForEvents = 14, kRowsForGraph = 18, kRowsForSpace = 24;
constexpr int kRowsBesideGraph = 16, kGraphRowsMax = 8;
constexpr int kEventsMin = 3;

std::string ClockText(double unix_seconds, int64_t utc_offset_seconds) {
  if (!std::isfinite(unix_seconds)) return "--:--:--";
  int64_t seconds = (static_cast<int64_t>(unix_seconds) + utc_offset_seconds) % kDaySeconds;
  if (seconds < 0) seconds += kDaySeconds;
  return absl::StrFormat("%02d:%02d:%02d", seconds / 3600, seconds / 60 % 60, seconds % 60);
}

// "2026-11-25 14:03:21".
std::string DateText(double unix_seconds, int64_t utc_offset_seconds) {
  const int64_t seconds = static_cast<int64_t>(unix_seconds) + utc_offset_seconds;
  const int64_t days =
      (seconds - ((seconds % kDaySeconds) + kDaySeconds) % kDaySeconds) / kDaySeconds;
  const std::chrono::year_month_day date{std::chrono::sys_days{std::chrono::days{days}}};
  return absl::StrFormat("%04d-%02d-%02d ", int{date.year()}, unsigned{date.month()},
                         unsigned{date.day()}) +
         ClockText(unix_seconds, utc_offset_seconds);
}

// "ipv4:127.0.0.1:7070" → "127.0.0.1:7070"; "ipv6:%5B::1%5D:7070" → "[::1]:7070".
std::string AddressText(std::string address) {
  for (const char* scheme : {"ipv4:", "ipv6:"}) {
    if (address.starts_with(scheme)) address = address.substr(5);
  }
  for (const auto& [coded, plain] : {std::pair("%5B", "["), std::pair("%5D", "]")}) {
    if (const size_t at = address.find(coded); at != std::string::npos)
      address.replace(at, 3, plain);
  }
  return address;
}

std::string PhaseText(v1::Status::Phase phase) {
  std::string text = EnumWord(v1::Status::Phase_descriptor()->FindValueByNumber(
      v1::Status::Phase_IsValid(phase) ? phase : v1::Status::PHASE_UNSPECIFIED));
  std::replace(text.begin(), text.end(), '_', ' ');
  return text;
}

Style PhaseStyle(v1::Status::Phase phase) {
  return phase == v1::Status::PHASE_ROUND_OPEN || phase == v1::Status::PHASE_ENDED
             ? Style::kGood
             : Style::kWarning;
}

struct EventWords {
  const char* words;
  Style style;
};

EventWords WordsOf(v1::Event::Kind kind) {
  switch (kind) {
    case v1::Event::KIND_JOINED:
      return {"joined", Style::kGood};
    case v1::Event::KIND_MEMBER:
      return {"is a member", Style::kGood};
    case v1::Event::KIND_OBSERVER:
      return {"became an observer", Style::kWarning};
    case v1::Event::KIND_ABSTAINED:
      return {"abstained", Style::kWarning};
    case v1::Event::KIND_LEFT:
      return {"left", Style::kPlain};
    case v1::Event::KIND_LOST:
      return {"lost", Style::kBad};
    case v1::Event::KIND_EVICTED:
      return {"evicted", Style::kBad};
    case v1::Event::KIND_REFUSED:
      return {"refused", Style::kBad};
    case v1::Event::KIND_RESYNC:
      return {"must fetch the state again", Style::kBad};
    case v1::Event::KIND_REOPENED:
      return {"the round opens again", Style::kWarning};
    case v1::Event::KIND_PAUSED:
      return {"paused", Style::kWarning};
    case v1::Event::KIND_RESUMED:
      return {"resumed", Style::kGood};
    case v1::Event::KIND_FINISHED:
      return {"the last round is committed", Style::kGood};
    case v1::Event::KIND_ENDED:
      return {"the run has ended", Style::kBold};
    default:
      return {"something this version has no word for", Style::kPlain};
  }
}

std::string EventText(const v1::Event& event) {
  std::string text = event.worker();
  if (!text.empty()) text += ' ';
  text += WordsOf(event.kind()).words;
  if (!event.reason().empty()) text += ": " + event.reason();
  return text;
}

double Ratio(double above, double below) { return below > 0 ? above / below : kNan; }

// How many times less than fp32; "-" before the first ballot.
std::string Times(double ratio) { return NumberOrDash("%.1f x", ratio); }

struct Savings {
  double up_per_ballot, down_per_ballot, up_ratio, down_ratio, saved_bytes;
};
Savings SavingsOf(const v1::WireTotals& wire) {
  const auto fp32 = static_cast<double>(wire.fp32_equivalent_bytes());
  const auto up = static_cast<double>(wire.up_rounds_bytes()),
             down = static_cast<double>(wire.down_rounds_bytes());
  const auto ballots = static_cast<double>(wire.ballots());
  return {.up_per_ballot = Ratio(up, ballots),
          .down_per_ballot = Ratio(down, ballots),
          .up_ratio = ballots > 0 ? Ratio(fp32, up) : kNan,
          .down_ratio = ballots > 0 ? Ratio(fp32, down) : kNan,
          .saved_bytes = ballots > 0 ? std::max(0.0, 2 * fp32 - up - down) : kNan};
}

std::string RateText(double bytes_per_second) {
  return std::isfinite(bytes_per_second) ? BytesText(bytes_per_second) + "/s" : "-";
}

// Builds one line that never gets wider than the screen.
class LineBuilder {
 public:
  LineBuilder(const TopView& view) : view_(view) {}

  size_t room() const { return static_cast<size_t>(view_.columns) - used_; }

  LineBuilder& Add(const std::string& text, Style style = Style::kPlain) {
    const std::string cut = CutTo(text, room(), view_.charset == Charset::kUtf8 ? "…" : "~");
    if (!cut.empty()) {
      line_.push_back({cut, style});
      used_ += TextWidth(cut);
    }
    return *this;
  }
  // The whole part or nothing of it: what comes last is the first to go when a terminal is narrow.
  LineBuilder& AddIfRoom(const std::vector<Span>& part) {
    size_t width = 0;
    for (const Span& span : part) width += TextWidth(span.text);
    if (width <= room()) {
      for (const Span& span : part) Add(span.text, span.style);
    }
    return *this;
  }
  Line Take() { return std::move(line_); }

 private:
  const TopView& view_;
  Line line_;
  size_t used_ = 0;
};

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
  line.Add("  ")
      .Add(Grouped(status.round()), Style::kBold)
      .Add(" of " + Grouped(status.rounds_max()) + " ");
  const double done = status.rounds_max() == 0
                          ? 0
                          : std::clamp(static_cast<double>(status.round()) /
                                           static_cast<double>(status.rounds_max()),
                                       0.0, 1.0);
  std::string after = absl::StrFormat(" %3.0f %%", std::floor(100 * done));
  const bool going_on = !model.ended() && status.round() < status.rounds_max();
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
                  {NumberOrDash("%.4g", status.round() == 0 ? kNan : status.stepsize())}});
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

// ---- the loss ----

// What a column of the graph shows: the mean of the points that fall on it, NaN where there is
// none.
std::vector<double> Resample(const v1::RoundSeries& series, size_t columns) {
  const auto points = static_cast<size_t>(series.loss_size());
  std::vector<double> out(columns, kNan);
  for (size_t c = 0; c < columns && points > 0; ++c) {
    const size_t begin = c * points / columns;
    const size_t end = std::max(begin + 1, (c + 1) * points / columns);
    double sum = 0;
    size_t count = 0;
    for (size_t i = begin; i < end; ++i) {
      const auto loss = static_cast<double>(series.loss(static_cast<int>(i)));
      if (!std::isfinite(loss)) continue;
      sum += loss;
      ++count;
    }
    if (count > 0) out[c] = sum / static_cast<double>(count);
  }
  return out;
}

// Filled columns. `levels` per character cell, 0 is empty.
std::vector<int> Heights(const std::vector<double>& values, double low, double high, int levels) {
  std::vector<int> out;
  for (const double value : values) {
    if (!std::isfinite(value)) {
      out.push_back(0);
    } else if (high > low) {
      out.push_back(1 + static_cast<int>(std::lround((value - low) / (high - low) * (levels - 1))));
    } else {
      out.push_back((levels + 1) / 2);
    }
  }
  return out;
}

std::string Braille(int left, int right) {
  // Dots from the bottom up: 7 3 2 1 and 8 6 5 4.
  constexpr std::array<uint32_t, 4> kLeft = {0x40, 0x04, 0x02, 0x01},
                                    kRight = {0x80, 0x20, 0x10, 0x08};
  uint32_t dots = 0;
  for (int i = 0; i < 4; ++i) {
    if (i < left) dots |= kLeft[static_cast<size_t>(i)];
    if (i < right) dots |= kRight[static_cast<size_t>(i)];
  }
  if (dots == 0) return " ";
  const uint32_t code = 0x2800 + dots;
  return {static_cast<char>(0xE0 | (code >> 12)), static_cast<char>(0x80 | ((code >> 6) & 0x3F)),
          static_cast<char>(0x80 | (code & 0x3F))};
}

void AddGraph(const TopModel& model, const TopView& view, int rows, std::vector<Line>* out) {
  const v1::RoundSeries& series = model.series();
  const bool utf8 = view.charset == Charset::kUtf8;
  double low = kNan, high = kNan, first = kNan;
  for (const float point : series.loss()) {
    const auto loss = static_cast<double>(point);
    if (!std::isfinite(loss)) continue;
    if (!std::isfinite(first)) first = loss;
    low = std::fmin(low, loss);
    high = std::fmax(high, loss);
  }
  LineBuilder title(view);
  title.Add("loss", Style::kTitle);
  if (!std::isfinite(first)) {
    title.Add(" no round has one yet", Style::kDim);
  } else {
    title.Add(" " + NumberOrDash("%.4f", first) + (utf8 ? " → " : " -> ") +
              NumberOrDash("%.4f", model.status().loss()));
    title.AddIfRoom(
        {{absl::StrFormat("  rounds %s to %s", Grouped(series.first_round()),
                          Grouped(model.status().round() > 0 ? model.status().round() - 1 : 0)),
          Style::kDim}});
  }
  out->push_back(title.Take());

  constexpr size_t kLabel = 9;
  const size_t width = static_cast<size_t>(view.columns) - kLabel;
  const int per_cell = utf8 ? 4 : 3;
  const size_t columns_per_cell = utf8 ? 2 : 1;
  const std::vector<double> values = Resample(series, width * columns_per_cell);
  // A column may be a mean: the scale is that of what is drawn.
  double drawn_low = kNan, drawn_high = kNan;
  for (const double value : values) {
    drawn_low = std::fmin(drawn_low, value);
    drawn_high = std::fmax(drawn_high, value);
  }
  const std::vector<int> heights = Heights(values, drawn_low, drawn_high, rows * per_cell);
  for (int row = rows - 1; row >= 0; --row) {
    std::string text;
    for (size_t cell = 0; cell < width; ++cell) {
      const auto height = [&](size_t column) {
        return std::clamp(heights[column] - row * per_cell, 0, per_cell);
      };
      if (utf8) {
        text += Braille(height(2 * cell), height(2 * cell + 1));
      } else {
        text += " .:#"[height(cell)];
      }
    }
    LineBuilder line(view);
    line.Add(text, Style::kGraph);
    if (!std::isfinite(first)) {
      // No scale without values.
    } else if (row == rows - 1) {
      line.Add(Right(NumberOrDash("%.3g", drawn_high), kLabel), Style::kDim);
    } else if (row == 0) {
      line.Add(Right(NumberOrDash("%.3g", drawn_low), kLabel), Style::kDim);
    }
    out->push_back(line.Take());
  }
}

// ---- workers ----

struct Column {
  const char* title;
  size_t width;  // with the space before it; of the name: at most
  int keep;      // the larger, the longer it is kept on a narrow terminal
  std::function<std::string(const v1::Worker&, const TopModel&)> text;
};

const char* RoleWord(const v1::Worker& worker) {
  if (!worker.connected()) return "lost";
  return worker.role() == v1::Worker::ROLE_OBSERVER ? "observer" : "member";
}
Style RoleStyle(const v1::Worker& worker) {
  if (!worker.connected()) return Style::kBad;
  return worker.role() == v1::Worker::ROLE_OBSERVER ? Style::kWarning : Style::kGood;
}

// One that is gone moves nothing.
WireRate RateOf(const v1::Worker& worker, const TopModel& model) {
  return worker.connected() ? model.RateOf(worker.name()) : WireRate{kNan, kNan};
}

// What stands behind the columns of name and role. "-" for what no ballot has told yet.
const std::vector<Column>& Columns() {
  static const auto* const kColumns = new std::vector<Column>{
      {"share", 6, 3,
       [](const v1::Worker& w, const TopModel&) { return std::to_string(w.share()); }},
      {"ballots", 9, 7, [](const v1::Worker& w, const TopModel&) { return Grouped(w.ballots()); }},
      {"abst", 6, 5, [](const v1::Worker& w, const TopModel&) { return Grouped(w.abstentions()); }},
      {"agree", 7, 8,
       [](const v1::Worker& w, const TopModel&) {
         return w.ballots() == 0 ? "-" : NumberOrDash("%.1f%%", 100 * w.agreement());
       }},
      {"loss", 9, 9,
       [](const v1::Worker& w, const TopModel&) { return NumberOrDash("%.4f", w.loss()); }},
      {"arrival", 9, 6,
       [](const v1::Worker& w, const TopModel&) {
         return w.ballots() == 0 ? "-" : SecondsText(w.arrival_seconds());
       }},
      {"up/s", 10, 4,
       [](const v1::Worker& w, const TopModel& m) { return RateText(RateOf(w, m).up); }},
      {"down/s", 10, 2,
       [](const v1::Worker& w, const TopModel& m) { return RateText(RateOf(w, m).down); }},
      {"address", 22, 1,
       [](const v1::Worker& w, const TopModel&) { return AddressText(w.address()); }},
  };
  return *kColumns;
}

double SortValue(const v1::Worker& worker, const TopModel& model, SortKey key) {
  switch (key) {
    case SortKey::kName:
      return 0;
    case SortKey::kShare:
      return worker.share();
    // What an operator looks for comes first: most ballots, most abstentions, least agreement,
    // largest loss, last to arrive, most bytes.
    case SortKey::kBallots:
      return -static_cast<double>(worker.ballots());
    case SortKey::kAbstentions:
      return -static_cast<double>(worker.abstentions());
    case SortKey::kAgreement:
      return worker.agreement();
    case SortKey::kLoss:
      return -worker.loss();
    case SortKey::kArrival:
      return -worker.arrival_seconds();
    case SortKey::kUp:
      return -RateOf(worker, model).up;
  }
  return 0;
}

std::vector<const v1::Worker*> Sorted(const TopModel& model, const TopView& view) {
  struct Entry {
    bool gone, unknown;
    double value;
    const v1::Worker* worker;
  };
  std::vector<Entry> entries;
  for (const v1::Worker& worker : model.status().workers()) {
    const double value = SortValue(worker, model, view.sort);
    entries.push_back(
        {!worker.connected(), std::isnan(value), std::isnan(value) ? 0 : value, &worker});
  }
  // Those that are gone, and those whose value is unknown, stay behind in both directions.
  std::sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
    if (a.gone != b.gone) return b.gone;
    if (a.unknown != b.unknown) return b.unknown;
    if (a.value != b.value) return (a.value < b.value) != view.reversed;
    const bool backwards = view.sort == SortKey::kName && view.reversed;
    return backwards ? b.worker->name() < a.worker->name() : a.worker->name() < b.worker->name();
  });
  std::vector<const v1::Worker*> workers;
  for (const Entry& entry : entries) workers.push_back(entry.worker);
  return workers;
}

constexpr size_t kRoleWidth = 10;

// Lines for the head and at most `rows` workers.
void AddTable(const TopModel& model, const TopView& view, size_t rows, Frame* frame) {
  const std::vector<const v1::Worker*> workers = Sorted(model, view);
  frame->workers_shown = std::min(rows, workers.size());
  frame->first_worker = std::min(view.first_worker, workers.size() - frame->workers_shown);
  size_t name_width = 7;
  for (const v1::Worker* worker : workers)
    name_width = std::max(name_width, worker->name().size() + 1);
  name_width = std::min<size_t>(name_width, view.columns >= 120 ? 33 : 17);

  size_t room =
      static_cast<size_t>(view.columns) - std::min<size_t>(name_width + kRoleWidth, view.columns);
  std::vector<const Column*> by_keep, shown;
  for (const Column& column : Columns()) by_keep.push_back(&column);
  std::sort(by_keep.begin(), by_keep.end(),
            [](const Column* a, const Column* b) { return a->keep > b->keep; });
  for (const Column* column : by_keep) {
    if (column->width > room) break;
    room -= column->width;
    shown.push_back(column);
  }
  std::sort(shown.begin(), shown.end());  // back in the order of the table

  const char* const ellipsis = view.charset == Charset::kUtf8 ? "…" : "~";
  LineBuilder head(view);
  head.Add(Left("worker", name_width), Style::kTitle)
      .Add(Left("role", kRoleWidth - 1), Style::kTitle);
  for (const Column* column : shown) head.Add(Right(column->title, column->width), Style::kTitle);
  if (head.room() > 0) head.Add(std::string(head.room(), ' '), Style::kTitle);
  frame->lines.push_back(head.Take());
  if (workers.empty()) {
    LineBuilder line(view);
    line.Add("none yet: start signvote-worker --server " + view.server, Style::kDim);
    frame->lines.push_back(line.Take());
  }
  for (size_t i = 0; i < frame->workers_shown; ++i) {
    const v1::Worker& worker = *workers[frame->first_worker + i];
    const Style style = worker.connected() ? Style::kPlain : Style::kDim;
    LineBuilder line(view);
    line.Add(Left(CutTo(worker.name(), name_width - 1, ellipsis), name_width), style);
    line.Add(Left(RoleWord(worker), kRoleWidth - 1), RoleStyle(worker));
    for (const Column* column : shown) {
      line.Add(
          Right(CutTo(column->text(worker, model), column->width - 1, ellipsis), column->width),
          style);
    }
    frame->lines.push_back(line.Take());
  }
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

SortKey NextSortKey(SortKey key) {
  return key == SortKey::kUp ? SortKey::kName : static_cast<SortKey>(static_cast<int>(key) + 1);
}
SortKey PreviousSortKey(SortKey key) {
  return key == SortKey::kName ? SortKey::kUp : static_cast<SortKey>(static_cast<int>(key) - 1);
}

const char* SortKeyWord(SortKey key) {
  constexpr std::array kWords = {"name",      "share", "ballots", "abstentions",
                                 "agreement", "loss",  "arrival", "up"};
  return kWords[static_cast<size_t>(key)];
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
  lines.push_back(SavingsLine(model, view));
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

// Widths of the columns after the time; each has a space before it.
constexpr char kLinesFormat[] = "%-19s %9s %9s %-19s %10s %10s %7s %9s %8s %12s %7s %7s %9s\n";

std::string LinesHeader() {
  return absl::StrFormat(kLinesFormat, "TIME", "ROUND", "OF", "PHASE", "LOSS", "STEPSIZE",
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
  const bool going_on = !model.ended() && status.round() < status.rounds_max();
  std::string phase = PhaseText(status.phase());
  std::replace(phase.begin(), phase.end(), ' ', '-');  // one word a column
  const auto word = [](std::string text) {
    text.erase(std::remove(text.begin(), text.end(), ' '), text.end());
    return text;
  };
  return absl::StrFormat(
      kLinesFormat, DateText(unix_seconds, utc_offset_seconds), std::to_string(status.round()),
      std::to_string(status.rounds_max()), phase, NumberOrDash("%.4f", status.loss()),
      NumberOrDash("%.4g", status.round() == 0 ? kNan : status.stepsize()), std::to_string(members),
      std::to_string(observers), NumberOrDash("%.1f", model.rounds_per_second()),
      word(SecondsText(going_on ? status.seconds_left() : kNan)), word(Times(savings.up_ratio)),
      word(Times(savings.down_ratio)), word(BytesText(savings.saved_bytes)));
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
