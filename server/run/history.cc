#include "server/run/history.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/text.h"

namespace signvote::run {
namespace {

float Mean(double sum, uint64_t count) {
  if (count == 0) return std::numeric_limits<float>::quiet_NaN();
  return static_cast<float>(sum / static_cast<double>(count));
}

}  // namespace

std::string_view Words(EventKind kind) {
  switch (kind) {
    case EventKind::kJoined:
      return "joined";
    case EventKind::kMember:
      return "member";
    case EventKind::kObserver:
      return "observer";
    case EventKind::kAbstained:
      return "abstained";
    case EventKind::kLeft:
      return "left";
    case EventKind::kLost:
      return "lost";
    case EventKind::kEvicted:
      return "evicted";
    case EventKind::kRefused:
      return "refused";
    case EventKind::kResync:
      return "resync";
    case EventKind::kReopened:
      return "reopened";
    case EventKind::kPaused:
      return "paused";
    case EventKind::kResumed:
      return "resumed";
    case EventKind::kFinished:
      return "finished";
    case EventKind::kEnded:
      break;
  }
  return "ended";
}

bool MadeByPeers(EventKind kind) {
  switch (kind) {
    case EventKind::kJoined:
    case EventKind::kLeft:
    case EventKind::kLost:
    case EventKind::kRefused:
    case EventKind::kResync:
      return true;
    case EventKind::kMember:
    case EventKind::kObserver:
    case EventKind::kAbstained:
    case EventKind::kReopened:
    case EventKind::kEvicted:
    case EventKind::kPaused:
    case EventKind::kResumed:
    case EventKind::kFinished:
    case EventKind::kEnded:
      break;
  }
  return false;
}

bool PacedByRounds(EventKind kind) {
  switch (kind) {
    case EventKind::kMember:
    case EventKind::kObserver:
    case EventKind::kAbstained:
    case EventKind::kReopened:
      return true;
    case EventKind::kJoined:
    case EventKind::kLeft:
    case EventKind::kLost:
    case EventKind::kRefused:
    case EventKind::kResync:
    case EventKind::kEvicted:
    case EventKind::kPaused:
    case EventKind::kResumed:
    case EventKind::kFinished:
    case EventKind::kEnded:
      break;
  }
  return false;
}

const Event& RunHistory::Add(Event event) {
  event.sequence = ++events_seen_;
  event.worker = ForPeople(event.worker, kTextBytesMax);
  event.reason = ForPeople(event.reason, kTextBytesMax);
  if (MadeByPeers(event.kind)) ++by_peers_;
  events_.push_back(std::move(event));
  if (events_.size() > kEventsKept) {
    auto oldest = events_.begin();
    if (by_peers_ > kEventsKept - kEventsReserved) {
      oldest = std::find_if(events_.begin(), events_.end(),
                            [](const Event& e) { return MadeByPeers(e.kind); });
    }
    if (MadeByPeers(oldest->kind)) --by_peers_;
    events_.erase(oldest);
  }
  return events_.back();
}

void RunHistory::AddRound(uint64_t round, double loss, double stepsize) {
  if (points_.empty()) first_round_ = round;
  if (points_.empty() || points_.back().rounds == rounds_per_point_) {
    if (points_.size() == kPointsMax) Merge();
    points_.emplace_back();
  }
  Point& last = points_.back();
  ++last.rounds;
  last.stepsize_sum += stepsize;
  if (loss == loss) {
    ++last.losses;
    last.loss_sum += loss;
  }
}

void RunHistory::Merge() {
  for (size_t i = 0; i < points_.size() / 2; ++i) {
    Point merged = points_[2 * i];
    const Point& second = points_[2 * i + 1];
    merged.loss_sum += second.loss_sum;
    merged.stepsize_sum += second.stepsize_sum;
    merged.losses += second.losses;
    merged.rounds += second.rounds;
    points_[i] = merged;
  }
  points_.resize(points_.size() / 2);
  rounds_per_point_ *= 2;
}

void RunHistory::AddHeldOut(HeldOut held_out) {
  held_out_.push_back(std::move(held_out));
  if (held_out_.size() <= kHeldOutMax) return;
  size_t kept = 0;
  for (size_t i = 0; i < held_out_.size(); i += 2) held_out_[kept++] = std::move(held_out_[i]);
  held_out_.resize(kept);
}

std::vector<Event> RunHistory::EventsAfter(uint64_t sequence) const {
  std::vector<Event> out;
  for (const Event& event : events_) {
    if (event.sequence > sequence) out.push_back(event);
  }
  return out;
}

RoundSeries RunHistory::Series() const {
  RoundSeries series;
  series.first_round = first_round_;
  series.rounds_per_point = rounds_per_point_;
  for (const Point& point : points_) {
    series.loss.push_back(Mean(point.loss_sum, point.losses));
    series.stepsize.push_back(Mean(point.stepsize_sum, point.rounds));
  }
  return series;
}

}  // namespace signvote::run
