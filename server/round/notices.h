#pragma once
// Words for people, as the engine's parts say them.

#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/clock.h"
#include "server/round/types.h"

namespace signvote::round {

inline void Say(Actions& out, NoticeLevel level, std::string text) {
  out.push_back(Notice{level, std::move(text)});
}

inline std::string Seconds(Duration d) { return absl::StrFormat("%.4g s", ToSeconds(d)); }

}  // namespace signvote::round
