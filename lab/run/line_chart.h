#pragma once
// A chart as SVG: lines, steps or dots over linear axes. Text alone, no library and nothing from outside.

#include <string>
#include <utility>
#include <vector>

namespace signvote::lab {

enum class ChartStyle { kLines, kSteps, kDots };

struct ChartSeries {
  std::string name;
  std::vector<std::pair<double, double>>
      points;  // in order of x; those that are not finite are left out
};

struct LineChart {
  std::string title, x_label, y_label;
  ChartStyle style = ChartStyle::kLines;
  bool from_zero = false;  // the y axis begins there
  std::vector<ChartSeries> series;
};

// One <svg> element, equal for equal charts; the names are escaped. A chart without a point says so.
std::string SvgOf(const LineChart& chart);

// "a &lt; b": text within HTML or SVG.
std::string Escaped(const std::string& text);

}  // namespace signvote::lab
