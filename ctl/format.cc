#include "ctl/format.h"

#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <iterator>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace signvote::ctl {
namespace {

constexpr double kKilo = 1e3;

bool StartsCodePoint(char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }

}  // namespace

std::string EnumWord(const google::protobuf::EnumValueDescriptor* value) {
  std::string word = value->name();
  std::string prefix = value->type()->name() + "_";
  std::transform(word.begin(), word.end(), word.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  std::transform(prefix.begin(), prefix.end(), prefix.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return word.starts_with(prefix) ? word.substr(prefix.size()) : word;
}

std::string Grouped(uint64_t value) {
  std::string digits = std::to_string(value);
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3)
    digits.insert(static_cast<size_t>(i), 1, ',');
  return digits;
}

std::string BytesText(double bytes) {
  if (!std::isfinite(bytes)) return "-";
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  size_t unit = 0;
  for (; bytes >= 999.5 && unit + 1 < std::size(kUnits); ++unit) bytes /= kKilo;
  return absl::StrFormat("%.*f %s", unit == 0 || bytes >= 99.95 ? 0 : 1, bytes, kUnits[unit]);
}

std::string SecondsText(double seconds) {
  if (!std::isfinite(seconds)) return "-";
  if (seconds < 0.000995) return absl::StrFormat("%.2f ms", seconds * kKilo);
  if (seconds < 0.00995) return absl::StrFormat("%.1f ms", seconds * kKilo);
  if (seconds < 1) return absl::StrFormat("%.0f ms", seconds * kKilo);
  if (seconds < 60) return absl::StrFormat("%.1f s", seconds);
  const auto whole = static_cast<uint64_t>(seconds);
  if (whole < 3600) return absl::StrFormat("%d min %02d s", whole / 60, whole % 60);
  return absl::StrFormat("%d h %02d min", whole / 3600, whole / 60 % 60);
}

std::string NumberOrDash(const char* format, double value) {
  if (!std::isfinite(value)) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

size_t TextWidth(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), StartsCodePoint));
}

std::string CutTo(const std::string& text, size_t width, const char* ellipsis) {
  if (TextWidth(text) <= width) return text;
  if (width == 0) return "";
  size_t end = 0, columns = 0;
  for (; end < text.size(); ++end) {
    if (StartsCodePoint(text[end]) && columns++ == width - 1) break;
  }
  return text.substr(0, end) + ellipsis;
}

std::string Left(const std::string& text, size_t width, const char* ellipsis) {
  const std::string cut = CutTo(text, width, ellipsis);
  return cut + std::string(width - TextWidth(cut), ' ');
}

std::vector<std::string> Wrapped(const std::string& text, size_t width) {
  std::vector<std::string> lines;
  for (const absl::string_view part : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    const std::string word = CutTo(std::string(part), width);
    if (lines.empty() || TextWidth(lines.back()) + 1 + TextWidth(word) > width) {
      lines.push_back(word);
    } else {
      lines.back() += " " + word;
    }
  }
  return lines;
}

std::string Right(const std::string& text, size_t width) {
  const size_t columns = TextWidth(text);
  return columns >= width ? text : std::string(width - columns, ' ') + text;
}

}  // namespace signvote::ctl
