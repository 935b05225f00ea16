#pragma once
// What `signvote top` writes where it has no terminal: lines of stable columns, each ending with a
// newline. Pure.

#include <cstdint>
#include <string>

#include "ctl/top_model.h"
#include "signvote/v1/admin.pb.h"

namespace signvote::ctl {

std::string LinesHeader();
// REQUIRES: model.has_status().
std::string LinesRow(const TopModel& model, double unix_seconds, int64_t utc_offset_seconds);
std::string LinesEvent(const v1::Event& event, int64_t utc_offset_seconds);
// Something that `top` itself has to say, in an event's place.
std::string LinesNote(const std::string& text, double unix_seconds, int64_t utc_offset_seconds);

}  // namespace signvote::ctl
