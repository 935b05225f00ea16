#include "worker/session/catch_up.h"

#include <limits>

namespace signvote {

CatchUp::~CatchUp() {
  for (const CommitEvent& commit : commits_) let_go_(commit);
}

void CatchUp::Add(CommitEvent commit) {
  if (!commits_.empty() && commits_.back().round.next() != commit.round) {
    let_go_(commit);
    return;
  }
  commits_.push_back(std::move(commit));
}

absl::Status CatchUp::FollowTo(Round round) {
  while (!commits_.empty() && commits_.front().round < round) {
    const absl::Status applied = apply_(commits_.front());
    // Kept for later, where it waits for x0; void, where a part lacks an earlier one.
    if (absl::IsFailedPrecondition(applied)) return absl::OkStatus();
    let_go_(commits_.front());
    commits_.pop_front();
    if (!applied.ok()) return applied;
  }
  return absl::OkStatus();
}

absl::Status CatchUp::FollowAll() { return FollowTo(Round(std::numeric_limits<uint64_t>::max())); }

}  // namespace signvote
