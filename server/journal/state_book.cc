#include "server/journal/state_book.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/journal/head.h"

namespace signvote::journal {

void StateBook::Begin(const v1::JournalHead& head,
                      std::shared_ptr<const std::vector<float>> optimizer) {
  MutexLock lock(&mu_);
  head_ = head;
  applied_ = Round(head.run().engine().round());
  states_[applied_] = {std::make_shared<const v1::RunState>(head.run()), std::move(optimizer)};
}

void StateBook::OnRecovered(Duration took, uint64_t commits) {
  MutexLock lock(&mu_);
  replay_ += took + kReplayOverhead * static_cast<int64_t>(commits);
}

void StateBook::Add(Round next, std::shared_ptr<const v1::RunState> after,
                    std::shared_ptr<const std::vector<float>> optimizer) {
  MutexLock lock(&mu_);
  states_[next] = {std::move(after), std::move(optimizer)};
}

void StateBook::OnApplied(Round next, Duration took) {
  MutexLock lock(&mu_);
  applied_ = next;
  replay_ += took + kReplayOverhead;
  states_.erase(states_.begin(), states_.lower_bound(next));
}

absl::StatusOr<StateBook::Standing> StateBook::At(Round round) const {
  MutexLock lock(&mu_);
  const auto state = states_.find(round);
  if (state == states_.end())
    return absl::NotFoundError(
        absl::StrCat("where the run stood at round ", round.value(), " is not known any more"));
  Standing out{.head = head_, .optimizer = state->second.optimizer};
  MoveOn(*state->second.after, out.head.mutable_run());
  return out;
}

void StateBook::OnSnapshot(Round round) {
  MutexLock lock(&mu_);
  snapshot_ = round;
  // Commits that came while it was written are few beside those of the next two seconds.
  replay_ = {};
}

Duration StateBook::replay() const {
  MutexLock lock(&mu_);
  return replay_;
}

std::optional<Round> StateBook::snapshot() const {
  MutexLock lock(&mu_);
  return snapshot_;
}

Round StateBook::applied() const {
  MutexLock lock(&mu_);
  return applied_;
}

}  // namespace signvote::journal
