#include "lab/run/run_page.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "lab/run/line_chart.h"

namespace signvote::lab {
namespace {

constexpr size_t kEventsMax = 200;  // of a run's table; all are in events.csv
constexpr const char* kStyle =
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em}"
    "table{border-collapse:collapse;font-size:13px}th,td{padding:2px 8px;text-align:left;"
    "border-bottom:1px solid #ddd}.wide{overflow-x:auto}.plots{display:grid;grid-template-columns:"
    "repeat(auto-fit,minmax(min(100%,460px),1fr));gap:1em}svg{width:100%;height:auto}"
    "@media (prefers-color-scheme:dark){body{background:#111;color:#ddd}svg{background:#fff}}";
// Scrolls by itself where the screen is narrower.
constexpr const char* kTable = "<div class=\"wide\" tabindex=\"0\"><table>\n";
constexpr const char* kTableEnd = "</table></div>\n";

std::string NameIn(const RunReport& report) { return report.name.empty() ? "run" : report.name; }

std::string Row(const char* cell, const std::vector<std::string>& texts) {
  std::string row = "<tr>";
  for (const std::string& text : texts)
    absl::StrAppend(&row, "<", cell, ">", Escaped(text), "</", cell, ">");
  return row + "</tr>\n";
}

std::string Seconds(const std::optional<double>& value) {
  return value.has_value() ? absl::StrFormat("%.2f s", *value) : "";
}

std::string HeldOut(const RunReport& report) {
  if (report.held_out.empty()) return "";
  const HeldOutPoint& last = report.held_out.back();
  return absl::StrFormat("%.4f ± %.4f after %d minibatches", last.loss, last.error,
                         last.minibatches);
}

// The longest time from an event of this kind to the next commit.
std::optional<double> Worst(const RunReport& report, const std::string& kind) {
  std::optional<double> worst;
  for (const ReportEvent& event : report.events)
    if (event.kind == kind && event.seconds_to_next_commit.has_value())
      worst = std::max(worst.value_or(0), *event.seconds_to_next_commit);
  return worst;
}

std::string Summary(const std::vector<RunReport>& reports) {
  std::string table =
      kTable + Row("th", {"run", "outcome", "rounds", "seconds", "last loss", "held-out loss",
                          "work kept", "goodput", "wait share", "lost commits", "replicas equal",
                          "worst after a server's kill", "worst after a worker's"});
  for (const RunReport& r : reports) {
    table +=
        Row("td", {NameIn(r), r.outcome, absl::StrCat(r.rounds), absl::StrFormat("%.1f", r.seconds),
                   absl::StrFormat("%.5g", r.points.back().loss), HeldOut(r),
                   absl::StrFormat("%.2f %%", 100 * r.work_kept),
                   absl::StrFormat("%.1f %%", 100 * r.goodput),
                   absl::StrFormat("%.1f %%", 100 * r.wait_share), absl::StrCat(r.lost_commits),
                   r.replicas_equal ? "yes" : "no", Seconds(Worst(r, "server_killed")),
                   Seconds(Worst(r, "worker_killed"))});
  }
  return table + kTableEnd;
}

using Coordinate = std::function<double(const RoundPoint&)>;

LineChart Over(const std::vector<RunReport>& reports, const char* title, const char* x_label,
               const char* y_label, const Coordinate& x, const Coordinate& y) {
  LineChart chart{.title = title, .x_label = x_label, .y_label = y_label};
  for (const RunReport& r : reports) {
    ChartSeries series{.name = NameIn(r)};
    for (const RoundPoint& p : r.points) series.points.emplace_back(x(p), y(p));
    chart.series.push_back(std::move(series));
  }
  return chart;
}

// The share of waiting in windows of so many rounds.
LineChart WaitShare(const std::vector<RunReport>& reports) {
  LineChart chart{.title = "wait share",
                  .x_label = "seconds",
                  .y_label = "share of a round",
                  .style = ChartStyle::kSteps,
                  .from_zero = true};
  for (const RunReport& r : reports) {
    ChartSeries series{.name = NameIn(r)};
    const size_t window = std::max<size_t>(1, r.points.size() / 100);
    double waited = 0, took = 0;
    for (size_t i = 0; i < r.points.size(); ++i) {
      waited += r.points[i].wait_seconds;
      took += r.points[i].round_seconds;
      if ((i + 1) % window != 0) continue;
      if (took > 0) series.points.emplace_back(r.points[i].seconds, waited / took);
      waited = took = 0;
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

LineChart HeldOutLoss(const std::vector<RunReport>& reports) {
  LineChart chart{.title = "held-out loss against minibatches that counted",
                  .x_label = "minibatches",
                  .y_label = "held-out loss"};
  for (const RunReport& r : reports) {
    ChartSeries series{.name = NameIn(r)};
    for (const HeldOutPoint& p : r.held_out)
      series.points.emplace_back(static_cast<double>(p.minibatches), p.loss);
    chart.series.push_back(std::move(series));
  }
  return chart;
}

LineChart Recovery(const std::vector<RunReport>& reports) {
  LineChart chart{.title = "from an event to the next commit",
                  .x_label = "seconds",
                  .y_label = "seconds to the next commit",
                  .style = ChartStyle::kDots,
                  .from_zero = true};
  for (const char* const kind : {"server_killed", "worker_killed", "left", "paused", "joined"}) {
    ChartSeries series{.name = kind};
    for (const RunReport& r : reports)
      for (const ReportEvent& e : r.events)
        if (e.kind == kind && e.seconds_to_next_commit.has_value())
          series.points.emplace_back(e.seconds, *e.seconds_to_next_commit);
    if (!series.points.empty()) chart.series.push_back(std::move(series));
  }
  return chart;
}

std::string Events(const RunReport& report) {
  std::string text = absl::StrCat("<h2>", Escaped(NameIn(report)), "</h2>\n");
  if (report.events.empty()) return text + "<p>Nothing happened to it.</p>\n";
  if (report.events.size() > kEventsMax) {
    absl::StrAppend(&text, "<p>The first ", kEventsMax, " of ", report.events.size(),
                    " events; events.csv has all.</p>\n");
  }
  text += kTable +
          Row("th", {"seconds", "round", "what", "who", "next commit after", "first ballot after"});
  for (size_t i = 0; i < std::min(report.events.size(), kEventsMax); ++i) {
    const ReportEvent& e = report.events[i];
    text += Row("td", {absl::StrFormat("%.1f", e.seconds), absl::StrCat(e.round), e.kind,
                       e.worker.empty() ? "server" : e.worker, Seconds(e.seconds_to_next_commit),
                       Seconds(e.seconds_to_first_ballot)});
  }
  return text + kTableEnd;
}

}  // namespace

std::string RunPage(const std::string& title, const std::vector<RunReport>& reports) {
  const auto loss = [](const RoundPoint& p) { return p.loss; };
  const auto seconds = [](const RoundPoint& p) { return p.seconds; };
  LineChart members = Over(reports, "members", "seconds", "members", seconds,
                           [](const RoundPoint& p) { return static_cast<double>(p.members); });
  members.style = ChartStyle::kSteps;
  members.from_zero = true;
  const LineChart charts[] = {
      Over(
          reports, "loss against rounds", "rounds", "training loss",
          [](const RoundPoint& p) { return static_cast<double>(p.round); }, loss),
      Over(reports, "loss against seconds", "seconds", "training loss", seconds, loss),
      Over(
          reports, "loss against bytes", "bytes, both ways", "training loss",
          [](const RoundPoint& p) { return static_cast<double>(p.bytes_up + p.bytes_down); }, loss),
      Over(
          reports, "loss against minibatches that counted", "minibatches", "training loss",
          [](const RoundPoint& p) { return static_cast<double>(p.minibatches); }, loss),
      members,
      WaitShare(reports),
      Recovery(reports)};
  std::string page = absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n",
      "<meta name=\"viewport\" content=\"width=device-width\">\n<title>", Escaped(title),
      "</title>\n<style>", kStyle, "</style>\n<h1>", Escaped(title), "</h1>\n");
  absl::StrAppend(&page, Summary(reports),
                  "<p><b>Work kept</b>: minibatches whose ballots were counted whole, of all that "
                  "were computed; what a killed "
                  "worker was at counts as computed. <b>Goodput</b>: seconds of computing what was "
                  "counted, of all seconds that "
                  "workers' processes ran.</p>\n<div class=\"plots\">\n");
  if (std::any_of(reports.begin(), reports.end(),
                  [](const RunReport& r) { return !r.held_out.empty(); }))
    absl::StrAppend(&page, "<figure style=\"margin:0\">", SvgOf(HeldOutLoss(reports)),
                    "</figure>\n");
  for (const LineChart& chart : charts)
    absl::StrAppend(&page, "<figure style=\"margin:0\">", SvgOf(chart), "</figure>\n");
  absl::StrAppend(&page, "</div>\n");
  for (const RunReport& report : reports) absl::StrAppend(&page, Events(report));
  return page + "</html>\n";
}

}  // namespace signvote::lab
