#pragma once
// The right to bring the initial parameters: one worker has it, for as long as it brings them.

#include <cstdint>
#include <optional>

#include "common/clock.h"
#include "server/run/peer.h"

namespace signvote::run {

// Progress is bytes per time, not a sign of life: in each window of `timeout` the holder must bring
// bytes_per_second_min × timeout, or all that is left. So an upload of B bytes ends, well or badly,
// within B / bytes_per_second_min + 2 × timeout, and an uploader that sends one coordinate a minute
// makes room for the next after one window.
//
// Threads: thread-compatible. Pure: time comes in.
class UploadLease {
 public:
  struct Options {
    Duration timeout = std::chrono::seconds(60);
    uint64_t bytes_per_second_min = uint64_t{32} << 10;  // 256 kbit/s
  };

  explicit UploadLease(Options options) : options_(options) {}

  // REQUIRES: nobody holds it, total_bytes > 0.
  void Grant(PeerId holder, uint64_t total_bytes, Time now);
  void Revoke() { holder_.reset(); }
  std::optional<PeerId> holder() const { return holder_; }

  // `bytes`: received so far, of total_bytes. Never falls.
  void Progress(uint64_t bytes, Time now);
  // Whether the window has passed without enough progress. False without a holder.
  bool Expired(Time now) const;
  // The first moment at which it will have; nullopt without a holder.
  std::optional<Time> expiry() const;
  // Bytes that the present window wants; for the sentence that ends the lease.
  uint64_t wanted_bytes() const;
  const Options& options() const { return options_; }

 private:
  const Options options_;
  std::optional<PeerId> holder_;
  uint64_t total_bytes_ = 0;
  // Invariant: window_bytes_ <= bytes_ <= total_bytes_.
  uint64_t bytes_ = 0;
  uint64_t window_bytes_ = 0;  // at the window's start
  Time window_start_;
};

}  // namespace signvote::run
