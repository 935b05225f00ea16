#pragma once
// The ballot of the round that the caller votes in, on its way: kept, and sent under the vote that is
// open, and again under each later one, over this connection or the next.
//
// Ownership: shares the bits with the caller; they are let go of when the ballot is closed and the
//            network is done with the last message of it, which may be later.
// Threads:   thread-safe. Chunks may be handed over while an attempt opens: each is sent under the
//            newest vote, once.

#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "common/payload_plan.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/follower.h"
#include "worker/session/kept_ballot.h"
#include "worker/session/outgoing_stream.h"
#include "worker/session/types.h"

namespace signvote {

class BallotSender {
 public:
  explicit BallotSender(Clock* clock) : clock_(clock) {}

  // ---- the link's side
  // A vote on `round` is open over this stream: a ballot that is kept for it goes again.
  void VoteOpens(std::shared_ptr<OutgoingStream> stream, Round round, const VoteId& vote)
      ABSL_LOCKS_EXCLUDED(mu_);
  // None is open any more: what is handed over waits for the next.
  void VoteEnds() ABSL_LOCKS_EXCLUDED(mu_);

  // ---- the caller's side
  void Open(Round round, Time opened, const PayloadPlan& plan) ABSL_LOCKS_EXCLUDED(mu_);
  // Any thread, also several at a time. INVALID_ARGUMENT: no chunk, or no bits.
  // FAILED_PRECONDITION: no round is open, or the chunk was handed over already.
  absl::Status SendChunk(ChunkIndex k, std::shared_ptr<const uint8_t> bits)
      ABSL_LOCKS_EXCLUDED(mu_);
  // True: the ballot is whole with this.
  absl::StatusOr<bool> SendScalars(v1::Scalars scalars) ABSL_LOCKS_EXCLUDED(mu_);
  // Chunks not yet sent are withdrawn; those sent stand.
  absl::Status SendAbstain(v1::Abstain::Reason reason) ABSL_LOCKS_EXCLUDED(mu_);
  // What waits for its turn is withdrawn; never waits for the network. `opened`, `first_chunk` and
  // `ballot_written`.
  RoundTimes Close() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Destination {
    std::shared_ptr<OutgoingStream> stream;
    Round round;
    VoteId id;
  };
  // The vote that the kept ballot goes under; nullptr: it waits.
  const Destination* VoteLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Clock* const clock_;

  Mutex mu_;
  PayloadPlan plan_ ABSL_GUARDED_BY(mu_);
  KeptBallot ballot_ ABSL_GUARDED_BY(mu_);
  std::optional<Destination> vote_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote
