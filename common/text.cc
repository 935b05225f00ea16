#include "common/text.h"

namespace signvote {

CodePoint CodePointAt(std::string_view text, size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  const CodePoint broken{.value = lead, .bytes = 1, .well_formed = false};
  size_t more = 0;
  uint32_t value = lead;
  if (lead >= 0xF0 && lead < 0xF5) {
    more = 3;
    value = lead & 0x07u;
  } else if (lead >= 0xE0 && lead < 0xF0) {
    more = 2;
    value = lead & 0x0Fu;
  } else if (lead >= 0xC2 && lead < 0xE0) {
    more = 1;
    value = lead & 0x1Fu;
  } else if (lead >= 0x80) {
    return broken;
  }
  if (more > text.size() - at - 1) return broken;
  for (size_t k = 1; k <= more; ++k) {
    const auto next = static_cast<unsigned char>(text[at + k]);
    if ((next & 0xC0u) != 0x80u) return broken;
    value = (value << 6) | (next & 0x3Fu);
  }
  const bool overlong = (more == 2 && value < 0x800) || (more == 3 && value < 0x10000);
  const bool surrogate = value >= 0xD800 && value < 0xE000;
  if (overlong || surrogate || value > 0x10FFFF) return broken;
  return {.value = value, .bytes = more + 1, .well_formed = true};
}

bool Misleads(uint32_t c) {
  const auto within = [c](uint32_t first, uint32_t last) { return c >= first && c <= last; };
  return c < 0x20 || within(0x7F, 0x9F)  // C0, DEL, C1
         || c == 0x00AD                  // soft hyphen
         || c == 0x061C                  // Arabic letter mark
         || within(0x200B, 0x200F)       // zero width, left-to-right and right-to-left marks
         || within(0x2028, 0x202E)       // separators; embeddings and overrides
         || within(0x2060, 0x206F)       // word joiner, isolates, deprecated formats
         || c == 0xFEFF                  // zero width no-break space
         || within(0xFFF9, 0xFFFB)       // interlinear annotation
         || within(0xE0000, 0xE007F);    // tags
}

bool IsFitForPeople(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = CodePointAt(text, at);
    if (!point.well_formed || Misleads(point.value)) return false;
    at += point.bytes;
  }
  return true;
}

std::string ForPeople(std::string_view text, size_t bytes_max) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = CodePointAt(text, at);
    if (at + point.bytes > bytes_max) break;
    if (!point.well_formed) {
      out += '?';
    } else if (Misleads(point.value)) {
      out += ' ';
    } else {
      out += text.substr(at, point.bytes);
    }
    at += point.bytes;
  }
  return out;
}

}  // namespace signvote
