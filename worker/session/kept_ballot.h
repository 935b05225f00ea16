#pragma once
// The ballot of the open round, kept until its commit so that it can be sent again: for another
// attempt, or over another connection.
//
// Ownership: shares the packed bits with whoever handed them over: this object while it keeps
//            them, each message until gRPC is done with it, which may be later.
// Threads:   not thread-safe; the ballot's sender guards it.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/payload_plan.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/follower.h"
#include "worker/session/outgoing_stream.h"

namespace signvote {

class KeptBallot {
 public:
  bool open() const { return open_; }
  Round round() const { return round_; }
  Time opened() const { return opened_; }
  Time first_chunk() const { return first_chunk_; }  // {} before the first

  void Open(Round round, Time opened, const PayloadPlan& plan);
  // FAILED_PRECONDITION: no round is open, or the chunk was handed over already.
  // REQUIRES: k < plan.chunks().
  absl::Status AddChunk(ChunkIndex k, std::shared_ptr<const uint8_t> bits, uint64_t checksum,
                        Time now);
  // Fills in round and compute_us. True: the ballot is whole with this.
  absl::StatusOr<bool> AddScalars(v1::Scalars scalars, Time now);
  absl::Status AddAbstain(v1::Abstain::Reason reason);

  OutgoingMessage ChunkMessage(ChunkIndex k, const VoteId& vote) const;
  OutgoingMessage ScalarsMessage(const VoteId& vote) const;
  OutgoingMessage AbstainMessage(const VoteId& vote) const;
  // Everything that was handed over, in order.
  std::vector<OutgoingMessage> AllMessages(const VoteId& vote) const;

 private:
  bool open_ = false;
  PayloadPlan plan_;
  Round round_;
  Time opened_, first_chunk_, last_chunk_;
  struct Chunk {
    std::shared_ptr<const uint8_t> bits;  // null: not handed over yet
    uint64_t checksum = 0;
  };
  std::vector<Chunk> chunks_;
  uint32_t handed_ = 0;
  std::optional<v1::Scalars> scalars_;
  std::optional<v1::Abstain> abstain_;
};

}  // namespace signvote
