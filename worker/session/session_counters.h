#pragma once
// What a session counts, for Stats(): everything but bytes, which WireMeter counts.
//
// Threads: thread-safe.

#include <cstdint>

#include "common/clock.h"
#include "common/mutex.h"
#include "worker/session/types.h"
#include "worker/session/wire_meter.h"

namespace signvote {

class SessionCounters {
 public:
  void Welcomed(uint64_t incarnation) ABSL_LOCKS_EXCLUDED(mu_);
  // The first round opened this long after the session's start; later ones are no joins.
  void RoundOpened(Duration since_start) ABSL_LOCKS_EXCLUDED(mu_);
  void Reconnects() ABSL_LOCKS_EXCLUDED(mu_);
  void BallotSent() ABSL_LOCKS_EXCLUDED(mu_);
  void CommitReceived() ABSL_LOCKS_EXCLUDED(mu_);
  void VerdictMismatched() ABSL_LOCKS_EXCLUDED(mu_);
  void CommitApplied(Duration took) ABSL_LOCKS_EXCLUDED(mu_);
  void StateTransferred() ABSL_LOCKS_EXCLUDED(mu_);

  // That applying the last commit took; zero before the first.
  Duration last_apply() const ABSL_LOCKS_EXCLUDED(mu_);
  // All of it, with these bytes.
  SessionStats Read(const SessionBytes& bytes, bool connected) const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  mutable Mutex mu_;
  Duration last_apply_ ABSL_GUARDED_BY(mu_){};
  bool joined_ ABSL_GUARDED_BY(mu_) = false;  // stats_.join_seconds is set
  SessionStats stats_ ABSL_GUARDED_BY(mu_);   // but for what Read() is given
};

}  // namespace signvote
