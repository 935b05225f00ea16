#pragma once
// Text that a peer or a file brought, made fit for people: logs, tables, error messages.

#include <cstddef>
#include <string>
#include <string_view>

namespace signvote {

// `text` without control characters (each becomes a space), and without what lies beyond
// `bytes_max` bytes: cut at the start of a code point, so that UTF-8 stays UTF-8. Control characters
// are C0, DEL and C1, line and paragraph separators, and what turns the direction of text around; a
// byte that is not UTF-8 becomes '?'.
std::string ForPeople(std::string_view text, size_t bytes_max);

// A UTF-8 text without the byte-order mark that editors of some systems begin a file with.
std::string_view WithoutMark(std::string_view text);

// The code point at the start of a text.
struct CodePoint {
  size_t bytes = 0;   // 1 to 4
  bool fits = false;  // well-formed UTF-8 that neither controls a terminal nor turns text around
};
// REQUIRES: !text.empty().
CodePoint FirstCodePoint(std::string_view text);

}  // namespace signvote
