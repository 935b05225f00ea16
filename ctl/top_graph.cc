#include "ctl/top_graph.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>

#include "absl/strings/str_format.h"
#include "ctl/format.h"
#include "ctl/top_text.h"

namespace signvote::ctl {
namespace {

// What a column of the graph shows: the mean of the points that fall on it, NaN where there is
// none.
std::vector<double> Resample(const v1::RoundSeries& series, size_t columns) {
  const auto points = static_cast<size_t>(series.loss_size());
  std::vector<double> out(columns, kUnknown);
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
}  // namespace

void AddGraph(const TopModel& model, const TopView& view, int rows, std::vector<Line>* out) {
  const v1::RoundSeries& series = model.series();
  const bool utf8 = view.charset == Charset::kUtf8;
  double low = kUnknown, high = kUnknown, first = kUnknown;
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
  double drawn_low = kUnknown, drawn_high = kUnknown;
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

}  // namespace signvote::ctl
