#pragma once
// What travels over a simulated connection: the messages of the protocol as structs.

#include <cstdint>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "signvote/v1/training.pb.h"

namespace signvote::sim {

// A BallotChunk or VerdictChunk.
struct VoteFrame {
  RunId run_id;
  Epoch epoch;
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
  uint64_t checksum = 0;
  std::span<const uint8_t> payload;
  std::shared_ptr<const void> owner;  // of the payload
};
// A StateChunk.
struct StateFrame {
  Round round;
  uint64_t first = 0;
  uint32_t plane = 0;
  uint64_t checksum = 0;
  std::shared_ptr<const std::vector<float>> values;
};

using UpFrame = std::variant<std::shared_ptr<const v1::WorkerMessage>, VoteFrame>;
using DownFrame = std::variant<std::shared_ptr<const v1::ServerMessage>, VoteFrame>;

// What becomes of a frame on its way. The simulation itself hands on what it was given; the encoders
// of proto/wire stand behind the same interface (wire_codec.h).
class Codec {
 public:
  virtual ~Codec() = default;
  virtual absl::StatusOr<UpFrame> Pass(UpFrame frame) = 0;
  virtual absl::StatusOr<DownFrame> Pass(DownFrame frame) = 0;
  virtual absl::StatusOr<StateFrame> PassFetched(StateFrame frame) = 0;
  virtual absl::StatusOr<StateFrame> PassUploaded(StateFrame frame) = 0;
};

}  // namespace signvote::sim
