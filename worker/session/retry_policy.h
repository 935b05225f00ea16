#pragma once
// What follows a broken connection: dial again, or give up, and in which words.
//
//   the server ended it with         before a welcome              after one
//   DEADLINE_EXCEEDED, or a status   give up: the run is over      give up
//     with the exit code of its end
//   a refusal (table in the .cc)     give up                       give up
//   RESOURCE_EXHAUSTED               give up: no place for it      dial again: it read too slowly
//   a TLS or address mistake         give up, once it is sure      dial again: the server was right once
//   anything else, OK included       dial again, while the server has been lost for less than
//                                      connect_timeout    it was never reached
//                                      server_timeout     it was there before
//                                      kFinishedPatience  it has said that the run is finished
//
// Threads: RetryPolicy is not thread-safe; the rest are pure functions.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/clock.h"
#include "worker/session/backoff.h"
#include "worker/session/dial_error.h"

namespace signvote {

// How long a finished run's server is looked for, when the connection broke before its goodbye.
inline constexpr Duration kFinishedPatience = std::chrono::seconds(30);

struct RetryLimits {
  Duration connect_timeout{};
  Duration server_timeout{};
};

// How a connection ended.
struct ConnectionEnd {
  absl::Status status;         // of the stream; OK: the server closed it in good order
  bool by_us = false;          // this side ended it with that status, because of what it was sent
  bool welcomed = false;       // on this connection
  bool ever_welcomed = false;  // on any
  bool finish_seen = false;    // the server has said that the run is finished
};

// OK: dial again. Else the status with which the session ends: exit code kRefused with a refusal; that
// of the run's end when it is over (kDiverged, kReplicaMismatch; kWaitTimeout: its server waited too
// long); UNAVAILABLE when the server stayed away too long. `lost_for`: since the last connection that
// was welcomed ended, or since the start. `hang_ups_in_a_row`: see ExplainDialFailure().
absl::Status AfterConnection(const ConnectionEnd& end, Duration lost_for, int hang_ups_in_a_row,
                             const RetryLimits& limits, const std::string& worker,
                             const DialContext& dial);

// Keeps what AfterConnection() counts.
class RetryPolicy {
 public:
  RetryPolicy(RetryLimits limits, std::string worker, DialContext dial, uint64_t jitter_seed,
              Time started);

  // AfterConnection() of this end.
  absl::Status Ended(const ConnectionEnd& end, Time now);
  // How long to wait before the next dial.
  Duration NextWait() { return backoff_.Next(); }
  // Something went well: the next wait is a short one.
  void Progress() { backoff_.Reset(); }

 private:
  const RetryLimits limits_;
  const std::string worker_;
  const DialContext dial_;
  Backoff backoff_;
  Time lost_since_;
  int hang_ups_in_a_row_ = 0;
};

}  // namespace signvote
