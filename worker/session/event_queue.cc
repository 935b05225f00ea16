#include "worker/session/event_queue.h"

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote {

absl::Status EventQueue::Push(LinkEvent event) {
  {
    MutexLock lock(&mu_);
    if (events_.size() >= kEventsMax)
      return absl::ResourceExhaustedError("the server sends more than this worker handles");
    events_.push_back(std::move(event));
  }
  changed_.NotifyAll();
  return absl::OkStatus();
}

void EventQueue::SetConnected(bool connected) {
  MutexLock lock(&mu_);
  connected_ = connected;
}

void EventQueue::SetNotice(std::string text) {
  MutexLock lock(&mu_);
  notice_ = std::move(text);
}

void EventQueue::End(absl::Status why) {
  {
    MutexLock lock(&mu_);
    fatal_ = std::move(why);
    ended_ = true;
  }
  changed_.NotifyAll();
}

std::optional<LinkEvent> EventQueue::TakeLocked() {
  if (events_.empty()) return std::nullopt;
  std::optional<LinkEvent> event = std::move(events_.front());
  events_.pop_front();
  return event;
}

absl::StatusOr<LinkEvent> EventQueue::Next(Time deadline, const std::string& what) {
  const Time start = waits_.clock()->Now();
  const absl::Status waited = waits_.Until(
      &mu_, &changed_, deadline,
      [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !events_.empty() || ended_; });
  if (absl::IsCancelled(waited)) return waited;
  MutexLock lock(&mu_);
  if (std::optional<LinkEvent> event = TakeLocked()) return *std::move(event);
  SIGNVOTE_RETURN_IF_ERROR(fatal_);
  if (ended_) return absl::OutOfRangeError("the session has ended");
  return WithExitCode(absl::DeadlineExceededError(absl::StrCat(
                          "waited ", ToSeconds(deadline - start), " s for ", what,
                          connected_ ? "" : absl::StrCat("; there is no connection to ", server_),
                          notice_.empty() ? "" : absl::StrCat("; the server says: ", notice_))),
                      ExitCode::kWaitTimeout);
}

std::optional<LinkEvent> EventQueue::TryNext() {
  MutexLock lock(&mu_);
  return TakeLocked();
}

Round EventQueue::AtHandFrom(Round round) const {
  MutexLock lock(&mu_);
  for (const LinkEvent& event : events_) {
    if (const auto* commit = std::get_if<CommitEvent>(&event); commit && commit->round == round)
      ++round;
  }
  return round;
}

bool EventQueue::AwaitEnd(Time deadline, Or or_what) {
  MutexLock lock(&mu_);
  changed_.WaitUntil(&mu_, waits_.clock(), deadline, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return ended_ || (or_what == Or::kDrain && drain_requested_);
  });
  return ended_;
}

absl::Status EventQueue::status() const {
  MutexLock lock(&mu_);
  return fatal_;
}

void EventQueue::RequestDrain(std::string reason) {
  {
    MutexLock lock(&mu_);
    // One is enough, and it must never be the one that finds no room.
    if (!drain_requested_) events_.push_back(DrainEvent{std::move(reason)});
    drain_requested_ = true;
  }
  changed_.NotifyAll();
}

bool EventQueue::drain_requested() const {
  MutexLock lock(&mu_);
  return drain_requested_;
}

}  // namespace signvote
