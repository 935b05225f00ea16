#pragma once
// Words for people, as the engine's parts say them.

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/clock.h"
#include "server/round/types.h"

namespace signvote::round {

// `of`: Notice::of.
inline void Say(Actions& out, NoticeLevel level, std::string text,
                std::optional<WorkerId> of = std::nullopt) {
  out.push_back(Notice{level, std::move(text), of});
}

inline std::string Seconds(Duration d) { return absl::StrFormat("%.4g s", ToSeconds(d)); }

}  // namespace signvote::round
