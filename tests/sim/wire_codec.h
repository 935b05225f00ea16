#pragma once
// Frames by way of bytes: each is written and read by the product's encoders (proto/wire). The only
// part of the simulation that links gRPC.

#include "tests/sim/frames.h"

namespace signvote::sim {

class WireCodec final : public Codec {
 public:
  absl::StatusOr<UpFrame> Pass(UpFrame frame) override;
  absl::StatusOr<DownFrame> Pass(DownFrame frame) override;
  absl::StatusOr<StateFrame> PassFetched(StateFrame frame) override;
  absl::StatusOr<StateFrame> PassUploaded(StateFrame frame) override;

  uint64_t passed() const { return passed_; }  // frames so far

 private:
  uint64_t passed_ = 0;
};

}  // namespace signvote::sim
