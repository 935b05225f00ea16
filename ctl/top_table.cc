#include "ctl/top_table.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "ctl/format.h"
#include "ctl/top_text.h"

namespace signvote::ctl {
namespace {

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
  return worker.connected() ? model.RateOf(worker.name()) : WireRate{kUnknown, kUnknown};
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

}  // namespace

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

}  // namespace signvote::ctl
