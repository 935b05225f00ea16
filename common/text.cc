#include "common/text.h"

#include <cstdint>

namespace signvote {
namespace {

// C0 and DEL, C1, and the marks, embeddings, overrides and isolates by which text that reads from
// right to left can make a line look like another one (Unicode UAX #9), separators of lines.
bool Controls(uint32_t c) {
  return c < 0x20 || (c >= 0x7F && c <= 0x9F) || c == 0x061C || (c >= 0x200E && c <= 0x200F) ||
         (c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

}  // namespace

CodePoint FirstCodePoint(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const uint32_t first = byte(0);
  if (first < 0x80) return {.bytes = 1, .fits = !Controls(first)};
  const size_t bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  constexpr CodePoint kMalformed{.bytes = 1, .fits = false};
  if (first < 0xC2 || first > 0xF4 || text.size() < bytes) return kMalformed;
  uint32_t value = first & (0xFFu >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return kMalformed;
    value = value << 6 | (byte(i) & 0x3Fu);
  }
  const uint32_t least = bytes == 4 ? 0x10000 : bytes == 3 ? 0x800 : 0x80;
  const bool surrogate = value >= 0xD800 && value <= 0xDFFF;
  if (value < least || value > 0x10FFFF || surrogate) return kMalformed;
  return {.bytes = bytes, .fits = !Controls(value)};
}

std::string_view WithoutMark(std::string_view text) {
  constexpr std::string_view kMark = "\xef\xbb\xbf";
  if (text.starts_with(kMark)) text.remove_prefix(kMark.size());
  return text;
}

std::string ForPeople(std::string_view text, size_t bytes_max) {
  std::string out;
  while (!text.empty()) {
    const CodePoint next = FirstCodePoint(text);
    const bool malformed = !next.fits && next.bytes == 1 && static_cast<signed char>(text[0]) < 0;
    const size_t added = next.fits ? next.bytes : 1;
    if (out.size() + added > bytes_max) break;
    if (next.fits) {
      out += text.substr(0, next.bytes);
    } else {
      out += malformed ? '?' : ' ';
    }
    text.remove_prefix(next.bytes);
  }
  return out;
}

}  // namespace signvote
