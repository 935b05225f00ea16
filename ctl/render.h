#pragma once
// A server's status for people (80 columns) and for programs (JSON). No I/O.

#include <string>

#include "signvote/v1/admin.pb.h"

namespace signvote::ctl {

enum class Colour { kOff, kOn };

// Aligned to 80 columns; names longer than their column are cut with "…". Ends with a newline.
std::string RenderTable(const v1::Status& status, Colour colour);

// One JSON object with the field names of admin.proto. 64-bit digests are strings of 16 hex digits,
// enum values lower-case words without their prefix, NaN null; every other field is a number,
// string or boolean, absent ones included. Ends with a newline.
std::string RenderJson(const v1::Status& status);

// The same object in one line, with the answer's events added as `events`.
std::string RenderJsonLine(const v1::WatchReply& reply);

}  // namespace signvote::ctl
