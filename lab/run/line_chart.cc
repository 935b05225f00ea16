#include "lab/run/line_chart.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace signvote::lab {
namespace {

constexpr double kWidth = 560, kHeight = 300;
constexpr double kLeft = 70, kRight = 14, kTop = 30, kBottom = 44;
constexpr double kLegendLine = 14;
constexpr size_t kPointsMax = 1000;  // of a series: more than there are columns
constexpr size_t kLegendMax = 12;
constexpr int kTicks = 5;
// Tells eight series apart, also for the colour-blind (Okabe and Ito).
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                    "#e69f00", "#56b4e9", "#000000", "#999900"};

struct Range {
  double least = std::numeric_limits<double>::infinity();
  double most = -std::numeric_limits<double>::infinity();

  void Take(double value) {
    least = std::min(least, value);
    most = std::max(most, value);
  }
  bool empty() const { return !(least <= most); }
  // Not a point.
  void Widen() {
    if (most > least) return;
    const double by = std::max(std::fabs(least), 1.0) * 0.5;
    least -= by;
    most += by;
  }
};

// 1, 2 or 5 times a power of ten.
double TickStep(const Range& range) {
  const double rough = (range.most - range.least) / kTicks;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (rough <= factor * power) return factor * power;
  return 10 * power;
}

// "2.5M" of 2500000.
std::string TickText(double value) {
  for (const auto& [unit, letter] :
       {std::pair(1e9, "G"), std::pair(1e6, "M"), std::pair(1e4, "k")}) {
    if (std::fabs(value) >= unit)
      return absl::StrFormat("%g%s", value / (unit == 1e4 ? 1e3 : unit), letter);
  }
  // What is nearly zero is the sum of steps.
  return absl::StrFormat("%.4g", std::fabs(value) < 1e-12 ? 0.0 : value);
}

std::vector<std::pair<double, double>> Thinned(const ChartSeries& series) {
  std::vector<std::pair<double, double>> finite;
  for (const auto& point : series.points)
    if (std::isfinite(point.first) && std::isfinite(point.second)) finite.push_back(point);
  if (finite.size() <= kPointsMax) return finite;
  std::vector<std::pair<double, double>> thin;
  const size_t every = (finite.size() + kPointsMax - 1) / kPointsMax;
  for (size_t i = 0; i < finite.size(); i += every) thin.push_back(finite[i]);
  thin.push_back(finite.back());
  return thin;
}

}  // namespace

std::string Escaped(const std::string& text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string SvgOf(const LineChart& chart) {
  Range x, y;
  std::vector<std::vector<std::pair<double, double>>> lines;
  for (const ChartSeries& series : chart.series) {
    lines.push_back(Thinned(series));
    for (const auto& [px, py] : lines.back()) {
      x.Take(px);
      y.Take(py);
    }
  }
  const bool legend = chart.series.size() > 1;
  const size_t legend_lines = legend ? std::min(chart.series.size(), kLegendMax) : 0;
  const double height = kHeight + static_cast<double>(legend_lines) * kLegendLine;
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" role=\"img\" "
      "aria-label=\"%s\" font-family=\"system-ui, sans-serif\" font-size=\"11\">\n"
      "<text x=\"%g\" y=\"18\" font-size=\"13\" font-weight=\"600\">%s</text>\n",
      kWidth, height, Escaped(chart.title), kLeft, Escaped(chart.title));
  if (x.empty()) {
    absl::StrAppend(
        &svg, absl::StrFormat("<text x=\"%g\" y=\"%g\">nothing to show</text>\n</svg>\n", kLeft,
                              kHeight / 2));
    return svg;
  }
  if (chart.from_zero) y.Take(0);
  x.Widen();
  y.Widen();
  if (!chart.from_zero) {
    const double margin = (y.most - y.least) * 0.04;
    y.least -= margin;
  }
  y.most += (y.most - y.least) * 0.04;
  const auto at_x = [&](double value) {
    return kLeft + (value - x.least) / (x.most - x.least) * (kWidth - kLeft - kRight);
  };
  const auto at_y = [&](double value) {
    return kHeight - kBottom - (value - y.least) / (y.most - y.least) * (kHeight - kTop - kBottom);
  };
  const double x_step = TickStep(x), y_step = TickStep(y);
  for (double tick = std::ceil(x.least / x_step) * x_step; tick <= x.most; tick += x_step) {
    absl::StrAppend(&svg,
                    absl::StrFormat("<path d=\"M%.1f %g V%g\" stroke=\"#ddd\"/><text x=\"%.1f\" "
                                    "y=\"%g\" text-anchor=\"middle\">%s</text>\n",
                                    at_x(tick), kTop, kHeight - kBottom, at_x(tick),
                                    kHeight - kBottom + 14, TickText(tick)));
  }
  for (double tick = std::ceil(y.least / y_step) * y_step; tick <= y.most; tick += y_step) {
    absl::StrAppend(&svg,
                    absl::StrFormat("<path d=\"M%g %.1f H%g\" stroke=\"#ddd\"/><text x=\"%g\" "
                                    "y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
                                    kLeft, at_y(tick), kWidth - kRight, kLeft - 5, at_y(tick) + 4,
                                    TickText(tick)));
  }
  absl::StrAppend(&svg, absl::StrFormat("<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">%s</text>\n"
                                        "<text transform=\"translate(14 %g) rotate(-90)\" "
                                        "text-anchor=\"middle\">%s</text>\n",
                                        (kLeft + kWidth - kRight) / 2, kHeight - kBottom + 32,
                                        Escaped(chart.x_label), (kTop + kHeight - kBottom) / 2,
                                        Escaped(chart.y_label)));
  for (size_t i = 0; i < lines.size(); ++i) {
    const char* const colour = kColours[i % std::size(kColours)];
    std::string path;
    for (const auto& [px, py] : lines[i]) {
      if (chart.style == ChartStyle::kDots) {
        absl::StrAppend(&svg,
                        absl::StrFormat("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n",
                                        at_x(px), at_y(py), colour));
      } else if (path.empty()) {
        path = absl::StrFormat("M%.1f %.1f", at_x(px), at_y(py));
      } else if (chart.style == ChartStyle::kSteps) {
        absl::StrAppend(&path, absl::StrFormat("H%.1fV%.1f", at_x(px), at_y(py)));
      } else {
        absl::StrAppend(&path, absl::StrFormat("L%.1f %.1f", at_x(px), at_y(py)));
      }
    }
    if (!path.empty()) {
      absl::StrAppend(&svg, "<path d=\"", path, "\" fill=\"none\" stroke=\"", colour,
                      "\" stroke-width=\"1.2\"/>\n");
    }
    if (i >= legend_lines) continue;
    const double row = kHeight + static_cast<double>(i) * kLegendLine;
    absl::StrAppend(&svg, absl::StrFormat("<rect x=\"%g\" y=\"%.1f\" width=\"10\" height=\"3\" "
                                          "fill=\"%s\"/><text x=\"%g\" y=\"%.1f\">%s</text>\n",
                                          kLeft, row - 1, colour, kLeft + 16, row + 4,
                                          Escaped(chart.series[i].name)));
  }
  return svg + "</svg>\n";
}

}  // namespace signvote::lab
