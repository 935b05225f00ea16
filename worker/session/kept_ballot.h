#pragma once
// The ballot of the open round, kept until its commit so that it can be sent again: for another
// attempt, or over another connection.
//
// Ownership: refers to the caller's packed bits until Close().
// Threads:   not thread-safe (the ballot's sender guards it), but for BallotBits.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/follower.h"
#include "worker/session/stream.h"

namespace signvote {

// Whether any message still refers to the caller's bits. Threads: thread-safe.
class BallotBits {
 public:
  void Release() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(&mu_);
    released_ = true;
    changed_.NotifyAll();  // under the lock: whoever waits may be the last owner
  }
  // False: a message still refers to them at `deadline`.
  bool AwaitRelease(const Clock* clock, Time deadline) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(&mu_);
    return changed_.WaitUntil(&mu_, clock, deadline,
                              [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return released_; });
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool released_ ABSL_GUARDED_BY(mu_) = false;
};

class KeptBallot {
 public:
  bool open() const { return lease_ != nullptr; }
  Round round() const { return round_; }
  Time opened() const { return opened_; }
  Time first_chunk() const { return first_chunk_; }  // {} before the first

  void Open(Round round, Time opened, const ChunkPlan& plan);
  // FAILED_PRECONDITION: no round is open, or the chunk was handed over already.
  // REQUIRES: k < plan.chunks().
  absl::Status AddChunk(ChunkIndex k, const uint8_t* bits, uint64_t checksum, Time now);
  // Fills in round and compute_us. True: the ballot is whole with this.
  absl::StatusOr<bool> AddScalars(v1::Scalars scalars, Time now);
  absl::Status AddAbstain(v1::Abstain::Reason reason);

  OutgoingMessage ChunkMessage(ChunkIndex k, const VoteId& vote) const;
  OutgoingMessage ScalarsMessage(const VoteId& vote) const;
  OutgoingMessage AbstainMessage(const VoteId& vote) const;
  // Everything that was handed over, in order.
  std::vector<OutgoingMessage> AllMessages(const VoteId& vote) const;

  // Forgets the ballot. The returned bits are released once no message refers to them any more.
  // nullptr: none was open.
  std::shared_ptr<BallotBits> Close();

 private:
  ChunkPlan plan_;
  Round round_;
  Time opened_, first_chunk_, last_chunk_;
  struct Chunk {
    const uint8_t* bits = nullptr;  // null: not handed over yet
    uint64_t checksum = 0;
  };
  std::vector<Chunk> chunks_;
  uint32_t handed_ = 0;
  std::optional<v1::Scalars> scalars_;
  std::optional<v1::Abstain> abstain_;
  std::shared_ptr<BallotBits> bits_;
  std::shared_ptr<const void> lease_;  // shared with every message; its end releases *bits_
};

}  // namespace signvote
