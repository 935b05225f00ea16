#include "worker/session/replica.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace signvote {

void Replica::SetWhole(Round round) { parts_ = {{memory_->coordinates(), round}}; }

absl::Status Replica::AddPart(Round round, uint64_t first, uint64_t count) {
  const uint64_t end = parts_.empty() ? 0 : parts_.back().end;
  const uint64_t left = memory_->coordinates() - end;
  if (first != end || count == 0 || count > left) {
    return absl::InvalidArgumentError(absl::StrCat("state transfer sent ", count,
                                                   " coordinates from ", first, " where ", left,
                                                   " from ", end, " were due"));
  }
  if (!parts_.empty() && parts_.back().round == round) {
    parts_.back().end += count;
  } else {
    parts_.push_back({end + count, round});
  }
  return absl::OkStatus();
}

Round Replica::round() const {
  SIGNVOTE_CHECK(complete());
  return std::min_element(parts_.begin(), parts_.end(),
                          [](const Part& a, const Part& b) { return a.round < b.round; })
      ->round;
}

absl::Status Replica::Apply(Round round, float stepsize, const uint8_t* verdict) {
  if (!complete() || this->round() < round) {
    return absl::FailedPreconditionError(
        absl::StrCat("the replica lacks commits before round ", round.value()));
  }
  uint64_t first = 0;
  for (Part& part : parts_) {
    if (part.round == round) {
      SIGNVOTE_RETURN_IF_ERROR(
          memory_->ApplyStep(*layout_, stepsize, first, part.end - first, verdict));
      ++part.round;
    }
    first = part.end;
  }
  // Neighbours that have become level are one part from now on.
  size_t kept = 0;
  for (size_t i = 1; i < parts_.size(); ++i) {
    if (parts_[i].round == parts_[kept].round) {
      parts_[kept].end = parts_[i].end;
    } else {
      parts_[++kept] = parts_[i];
    }
  }
  parts_.resize(kept + 1);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Replica::Digest() const {
  SIGNVOTE_CHECK(level());
  return memory_->Digest();
}

}  // namespace signvote
