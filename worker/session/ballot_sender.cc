#include "worker/session/ballot_sender.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/crash_point.h"
#include "common/status.h"

namespace signvote {

const BallotSender::Destination* BallotSender::VoteLocked() const {
  return vote_ && ballot_.open() && vote_->round == ballot_.round() ? &*vote_ : nullptr;
}

void BallotSender::VoteOpens(std::shared_ptr<OutgoingStream> stream, Round round,
                             const VoteId& vote) {
  {
    MutexLock lock(&mu_);
    vote_ = Destination{stream, round, vote};
    // Under the lock, because what the caller hands over from now on is sent under this vote and
    // must not be withdrawn with the rest.
    if (const Destination* const now = VoteLocked()) {
      stream->ReplaceBallots(ballot_.AllMessages(now->id));
    }
  }
  stream->Flush();
}

void BallotSender::VoteEnds() {
  std::shared_ptr<OutgoingStream> last;  // destroyed outside the lock
  MutexLock lock(&mu_);
  if (vote_) last = std::move(vote_->stream);
  vote_.reset();
}

void BallotSender::Open(Round round, Time opened, const PayloadPlan& plan) {
  MutexLock lock(&mu_);
  plan_ = plan;
  ballot_.Open(round, opened, plan);
}

absl::Status BallotSender::SendChunk(ChunkIndex k, std::shared_ptr<const uint8_t> bits) {
  CrashPoint("ballot.chunk-due");
  size_t bytes = 0;
  {
    MutexLock lock(&mu_);
    if (!ballot_.open()) return absl::FailedPreconditionError("no round is open");
    if (k.value() >= plan_.chunks())
      return absl::InvalidArgumentError(absl::StrCat("chunk ", k.value(), " of ", plan_.chunks()));
    bytes = plan_.Bytes(k, 1);
  }
  if (bits == nullptr)
    return absl::InvalidArgumentError(absl::StrCat("chunk ", k.value(), " has no bits"));
  const uint64_t checksum = Xxh3(bits.get(), bytes);
  std::shared_ptr<OutgoingStream> stream;
  OutgoingMessage outgoing;
  {
    MutexLock lock(&mu_);
    SIGNVOTE_RETURN_IF_ERROR(ballot_.AddChunk(k, std::move(bits), checksum, clock_->Now()));
    // Without a vote the chunk waits for the round's next opening.
    const Destination* const vote = VoteLocked();
    if (vote == nullptr) return absl::OkStatus();
    outgoing = ballot_.ChunkMessage(k, vote->id);
    stream = vote->stream;
  }
  stream->Write(std::move(outgoing));
  return absl::OkStatus();
}

absl::StatusOr<bool> BallotSender::SendScalars(v1::Scalars scalars) {
  std::shared_ptr<OutgoingStream> stream;
  OutgoingMessage outgoing;
  bool whole = false;
  {
    MutexLock lock(&mu_);
    SIGNVOTE_ASSIGN_OR_RETURN(whole, ballot_.AddScalars(std::move(scalars), clock_->Now()));
    const Destination* const vote = VoteLocked();
    if (vote == nullptr) return whole;
    outgoing = ballot_.ScalarsMessage(vote->id);
    stream = vote->stream;
  }
  stream->Write(std::move(outgoing));
  CrashPoint("ballot.sent");
  return whole;
}

absl::Status BallotSender::SendAbstain(v1::Abstain::Reason reason) {
  std::shared_ptr<OutgoingStream> stream;
  {
    MutexLock lock(&mu_);
    SIGNVOTE_RETURN_IF_ERROR(ballot_.AddAbstain(reason));
    const Destination* const vote = VoteLocked();
    if (vote == nullptr) return absl::OkStatus();
    stream = vote->stream;
    std::vector<OutgoingMessage> instead;
    instead.push_back(ballot_.AbstainMessage(vote->id));
    stream->ReplaceBallots(std::move(instead));
  }
  stream->Flush();
  return absl::OkStatus();
}

RoundTimes BallotSender::Close() {
  RoundTimes times;
  std::shared_ptr<OutgoingStream> stream;
  KeptBallot closed;  // its bits are let go of outside the lock
  {
    MutexLock lock(&mu_);
    times.opened = ballot_.opened();
    times.first_chunk = ballot_.first_chunk();
    if (!ballot_.open()) return times;
    std::swap(closed, ballot_);
    if (vote_) stream = vote_->stream;
  }
  if (stream == nullptr) return times;
  times.ballot_written = stream->ballots_written();
  stream->WithdrawBallots();
  return times;
}

}  // namespace signvote
