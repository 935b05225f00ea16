#pragma once
// Bytes of a run on the wire, as both ends count them.

#include <cstdint>

namespace signvote {

// TCP payload, TLS and HTTP/2 included. "rounds" is what sessions moved after their join; handshakes,
// joins and state transfers are in "setup".
struct WireTotals {
  uint64_t up_rounds_bytes = 0;        // worker to server
  uint64_t down_rounds_bytes = 0;      // server to worker
  uint64_t up_setup_bytes = 0;         // worker to server
  uint64_t down_setup_bytes = 0;       // server to worker
  uint64_t fp32_equivalent_bytes = 0;  // one direction: 4 bytes × d × counted ballots
  uint64_t ballots = 0;                // whole ballots counted
  uint64_t minibatches = 0;            // that the workers took who were counted, silent rounds' too

  WireTotals& operator+=(const WireTotals& other) {
    up_rounds_bytes += other.up_rounds_bytes;
    down_rounds_bytes += other.down_rounds_bytes;
    up_setup_bytes += other.up_setup_bytes;
    down_setup_bytes += other.down_setup_bytes;
    fp32_equivalent_bytes += other.fp32_equivalent_bytes;
    ballots += other.ballots;
    minibatches += other.minibatches;
    return *this;
  }
  bool operator==(const WireTotals&) const = default;
};

}  // namespace signvote
