#pragma once
// Bytes of a session's connections, as its sockets count them: those of rounds apart from those of
// handshakes, joins, catching up and state transfers.
//
// Threads: thread-safe.

#include <optional>
#include <string>

#include "common/mutex.h"
#include "proto/wire/socket_bytes.h"

namespace signvote {

// What a session has moved so far.
struct SessionBytes {
  wire::SocketBytes rounds;
  wire::SocketBytes setup;
};

class WireMeter {
 public:
  // A message has come over a connection to `peer` (as gRPC names it), which was dialled with `mark`. The first of a connection
  // finds its socket; until BeginRounds() its bytes are set-up.
  void OnMessage(const std::string& peer, uint32_t mark) ABSL_LOCKS_EXCLUDED(mu_);
  // What follows on this connection are rounds. False: that was said before.
  bool BeginRounds() ABSL_LOCKS_EXCLUDED(mu_);
  bool rounds_begun() const ABSL_LOCKS_EXCLUDED(mu_);
  // The connection has ended.
  void End() ABSL_LOCKS_EXCLUDED(mu_);
  // A state transfer over a connection of its own has moved these.
  void AddTransfer(const wire::SocketBytes& moved) ABSL_LOCKS_EXCLUDED(mu_);
  SessionBytes Read() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void ReadLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable Mutex mu_;
  SessionBytes totals_ ABSL_GUARDED_BY(mu_);
  std::optional<wire::SocketByteCounter> counter_ ABSL_GUARDED_BY(mu_);
  wire::SocketBytes counted_ ABSL_GUARDED_BY(mu_);  // last reading of counter_
  bool rounds_ ABSL_GUARDED_BY(mu_) = false;        // this connection's bytes are rounds' by now
};

}  // namespace signvote
