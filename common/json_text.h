#pragma once
// What is wrong with a JSON text that others wrote, and where: for messages.

#include <string>
#include <string_view>

namespace signvote {

// Programs differ in what they make of a key that stands twice in one object.
enum class RepeatedKeys { kLastCounts, kRefused };

// "" when `text` is one JSON object in UTF-8; else what it is instead, or where it breaks off being one:
//   "a web page, not the file itself; download the file"        (common/file_kind.h)
//   "line 3, column 12: syntax error while parsing value - unexpected ','"
//   "a JSON array"
//   "the key \"a\" stands twice"
// Lines and columns are counted from 1, columns in bytes. One line of at most 256 bytes, fit for people.
// Nesting costs no stack.
std::string JsonObjectFault(std::string_view text, RepeatedKeys repeated);

}  // namespace signvote
