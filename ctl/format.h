#pragma once
// Numbers and columns as `signvote` shows them. No I/O.

#include <cstdint>
#include <string>
#include <vector>

namespace google::protobuf {
class EnumValueDescriptor;
}  // namespace google::protobuf

namespace signvote::ctl {

// "PHASE_ROUND_OPEN" of enum Phase → "round_open".
std::string EnumWord(const google::protobuf::EnumValueDescriptor* value);

// "851,968".
std::string Grouped(uint64_t value);

// "41.0 MB", decimal units.
std::string BytesText(double bytes);

// "0.35 ms", "4.2 ms", "180 ms", "36.2 s", "2 min 05 s", "1 h 02 min"; "-" when not finite.
std::string SecondsText(double seconds);

// printf's words for a finite value, "-" for any other.
std::string NumberOrDash(const char* format, double value);

// Columns are counted in code points: nothing here is wide.
size_t TextWidth(const std::string& text);
// Cut to `width` columns; the last one is then `ellipsis`, one column wide.
std::string CutTo(const std::string& text, size_t width, const char* ellipsis = "…");
// Cut and padded to exactly `width` columns.
std::string Left(const std::string& text, size_t width, const char* ellipsis = "…");
// Broken between words into lines of at most `width` columns; a longer word is cut. No text: no line.
std::vector<std::string> Wrapped(const std::string& text, size_t width);
// Padded; never cut.
std::string Right(const std::string& text, size_t width);

}  // namespace signvote::ctl
