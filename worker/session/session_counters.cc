#include "worker/session/session_counters.h"

#include <utility>

namespace signvote {

void SessionCounters::Welcomed(uint64_t incarnation) {
  MutexLock lock(&mu_);
  stats_.incarnation = incarnation;
}

void SessionCounters::RoundOpened(Duration since_start) {
  MutexLock lock(&mu_);
  if (!std::exchange(joined_, true)) stats_.join_seconds = ToSeconds(since_start);
}

void SessionCounters::Reconnects() {
  MutexLock lock(&mu_);
  ++stats_.reconnects;
}

void SessionCounters::BallotSent() {
  MutexLock lock(&mu_);
  ++stats_.rounds_voted;
}

void SessionCounters::CommitReceived() {
  MutexLock lock(&mu_);
  ++stats_.rounds_received;
}

void SessionCounters::VerdictMismatched() {
  MutexLock lock(&mu_);
  ++stats_.verdict_mismatches;
}

void SessionCounters::CommitApplied(Duration took) {
  MutexLock lock(&mu_);
  last_apply_ = took;
  stats_.last_apply_seconds = ToSeconds(took);
  ++stats_.rounds_applied;
}

void SessionCounters::StateTransferred() {
  MutexLock lock(&mu_);
  ++stats_.state_transfers;
}

Duration SessionCounters::last_apply() const {
  MutexLock lock(&mu_);
  return last_apply_;
}

SessionStats SessionCounters::Read(const SessionBytes& bytes, bool connected) const {
  MutexLock lock(&mu_);
  SessionStats stats = stats_;
  stats.connected = connected;
  stats.wire_sent_bytes = bytes.rounds.sent;
  stats.wire_received_bytes = bytes.rounds.received;
  stats.setup_sent_bytes = bytes.setup.sent;
  stats.setup_received_bytes = bytes.setup.received;
  return stats;
}

}  // namespace signvote
