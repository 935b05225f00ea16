#include "server/run/evaluation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "common/check.h"

namespace signvote::run {
namespace {

template <typename Entries>
auto FindWorker(const Entries& entries, WorkerId worker) {
  const auto it = std::lower_bound(entries.begin(), entries.end(), worker,
                                   [](const auto& entry, WorkerId w) { return entry.worker < w; });
  return it != entries.end() && it->worker == worker ? &*it : nullptr;
}

// From the opening of a round to a ballot, lately; unknown counts as slow.
double SecondsOf(const round::MemberView* member) {
  return member != nullptr && member->median_arrival.has_value()
             ? ToSeconds(*member->median_arrival)
             : std::numeric_limits<double>::infinity();
}

}  // namespace

void Evaluation::OnJoined(WorkerId worker, Incarnation incarnation,
                          std::optional<uint64_t> windows) {
  able_.erase(worker);
  if (windows.has_value()) able_[worker] = {.incarnation = incarnation, .windows = *windows};
}

std::vector<WorkerId> Evaluation::AbleOf(std::span<const round::Seat> seats) const {
  std::vector<WorkerId> able;
  for (const auto& [worker, known] : able_) {
    const round::Seat* const seat = FindWorker(seats, worker);
    if (seat != nullptr && seat->incarnation == known.incarnation) able.push_back(worker);
  }
  return able;
}

bool Evaluation::Due(Round round, std::span<const round::Seat> seats) const {
  if (every_ == 0 || able_.empty()) return false;
  if (asked_.has_value() && asked_->answered) {
    if (round.value() / every_ == asked_->round.value() / every_) return false;
  } else if (asked_.has_value()) {
    const round::Seat* const seat = FindWorker(seats, asked_->worker);
    const bool here = seat != nullptr && Asks(asked_->round, *seat);
    if (here && round.value() - asked_->round.value() <= every_) return false;
  }
  return !AbleOf(seats).empty();
}

uint64_t Evaluation::WindowsFor(std::span<const WorkerId> able) const {
  std::map<uint64_t, size_t> workers;  // by windows
  for (const WorkerId worker : able) ++workers[able_.at(worker).windows];
  if (last_windows_.has_value() && workers.contains(*last_windows_)) return *last_windows_;
  // Of equally many the first that joined decides: the order of hashes means nothing.
  uint64_t most = able_.at(able.front()).windows;
  for (const WorkerId worker : able) {
    const uint64_t windows = able_.at(worker).windows;
    if (workers[windows] > workers[most]) most = windows;
  }
  return most;
}

WorkerId Evaluation::Ask(Round round, std::span<const round::Seat> seats,
                         std::span<const round::MemberView> members) {
  std::vector<WorkerId> able = AbleOf(seats);
  SIGNVOTE_CHECK(!able.empty());
  // One that was asked and said nothing is asked again only where nobody else can.
  if (able.size() > 1 && asked_.has_value() && !asked_->answered) std::erase(able, asked_->worker);
  const uint64_t windows = WindowsFor(able);
  const auto seconds = [&](const round::Seat& seat) {
    return SecondsOf(FindWorker(members, seat.worker));
  };
  const auto rank = [&](const round::Seat& seat) {
    return std::pair(seat.role != round::Role::kMember, seconds(seat));
  };
  const round::Seat* best = nullptr;
  const round::Seat* last = nullptr;
  for (const WorkerId worker : able) {
    if (able_.at(worker).windows != windows) continue;
    const round::Seat* const seat = FindWorker(seats, worker);
    if (best == nullptr || rank(*seat) < rank(*best)) best = seat;
    if (asked_.has_value() && asked_->worker == worker) last = seat;
  }
  if (last != nullptr && last->role == best->role &&
      seconds(*last) <= kSlowerMax * seconds(*best)) {
    best = last;
  }
  asked_ = {.worker = best->worker, .incarnation = best->incarnation, .round = round};
  return best->worker;
}

bool Evaluation::Asks(Round round, const round::Seat& seat) const {
  return asked_.has_value() && asked_->round == round && asked_->worker == seat.worker &&
         asked_->incarnation == seat.incarnation;
}

Evaluation::Verdict Evaluation::OnMeasured(WorkerId worker, const Measured& measured,
                                           Round committed) {
  const auto it = able_.find(worker);
  if (it == able_.end() || it->second.windows != measured.windows) return Verdict::kRefused;
  if (!std::isfinite(measured.loss) || !std::isfinite(measured.error) || measured.error < 0 ||
      measured.round > committed) {
    return Verdict::kRefused;
  }
  // Whatever its incarnation is by now: what it measured is the same.
  if (!asked_.has_value() || asked_->worker != worker || asked_->round != measured.round) {
    return Verdict::kItsOwn;
  }
  if (std::exchange(asked_->answered, true)) return Verdict::kKnown;
  last_windows_ = measured.windows;
  return Verdict::kRuns;
}

std::optional<WorkerId> Evaluation::evaluator() const {
  if (!asked_.has_value()) return std::nullopt;
  const auto it = able_.find(asked_->worker);
  if (it == able_.end() || it->second.incarnation != asked_->incarnation) return std::nullopt;
  return asked_->worker;
}

}  // namespace signvote::run
