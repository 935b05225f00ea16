#pragma once
// Text that a peer or a file brought, made fit for people: logs, tables, error messages.

#include <cstddef>
#include <string>
#include <string_view>

namespace signvote {

// `text` without control characters (each becomes a space), and without what lies beyond
// `bytes_max` bytes: cut at the start of a code point, so that UTF-8 stays UTF-8.
std::string ForPeople(std::string_view text, size_t bytes_max);

}  // namespace signvote
