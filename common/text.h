#pragma once
// Text that a peer or a file brought, made fit for people: logs, tables, error messages.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace signvote {

// A code point of UTF-8 text.
struct CodePoint {
  uint32_t value = 0;
  size_t bytes = 1;         // that it takes
  bool well_formed = true;  // false: one byte that is no UTF-8, `value` is the byte
};
// The code point at text[at]. Overlong forms, surrogates and what lies beyond U+10FFFF are not well
// formed. REQUIRES: at < text.size().
CodePoint CodePointAt(std::string_view text, size_t at);

// Whether a code point changes how the text around it is shown, or hides: the control characters C0,
// DEL and C1, the line and paragraph separators, the marks, embeddings, overrides and isolates of
// bidirectional text, what has no width, and the invisible tags.
bool Misleads(uint32_t code_point);

// True for well-formed UTF-8 without code points that mislead.
bool IsFitForPeople(std::string_view text);

// `text` as IsFitForPeople(): each code point that misleads becomes a space, each byte that is no UTF-8
// a '?'. What lies beyond `bytes_max` bytes is left out: cut at the start of a code point.
std::string ForPeople(std::string_view text, size_t bytes_max);

}  // namespace signvote
