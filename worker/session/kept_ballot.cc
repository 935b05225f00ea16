#include "worker/session/kept_ballot.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/wire/wire.h"

namespace signvote {
namespace {

absl::Status NoRound() { return absl::FailedPreconditionError("no round is open"); }

}  // namespace

void KeptBallot::Open(Round round, Time opened, const PayloadPlan& plan) {
  *this = KeptBallot();
  plan_ = plan;
  round_ = round;
  opened_ = opened;
  chunks_.resize(plan.chunks());
  open_ = true;
}

absl::Status KeptBallot::AddChunk(ChunkIndex k, std::shared_ptr<const uint8_t> bits,
                                  uint64_t checksum, Time now) {
  if (!open()) return NoRound();
  Chunk& chunk = chunks_[k.value()];
  if (chunk.bits != nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("chunk ", k.value(), " was handed over already"));
  }
  chunk = {.bits = std::move(bits), .checksum = checksum};
  if (handed_++ == 0) first_chunk_ = now;
  last_chunk_ = now;
  return absl::OkStatus();
}

absl::StatusOr<bool> KeptBallot::AddScalars(v1::Scalars scalars, Time now) {
  if (!open()) return NoRound();
  const Duration compute = (handed_ > 0 ? last_chunk_ : now) - opened_;
  scalars.set_round(round_.value());
  scalars.set_compute_us(static_cast<uint64_t>(std::max<int64_t>(
      0, std::chrono::duration_cast<std::chrono::microseconds>(compute).count())));
  const bool whole = handed_ == chunks_.size() && !scalars_;
  scalars_ = std::move(scalars);
  return whole;
}

absl::Status KeptBallot::AddAbstain(v1::Abstain::Reason reason) {
  if (!open()) return NoRound();
  abstain_.emplace();
  abstain_->set_round(round_.value());
  abstain_->set_reason(reason);
  return absl::OkStatus();
}

OutgoingMessage KeptBallot::ChunkMessage(ChunkIndex k, const VoteId& vote) const {
  const Chunk& chunk = chunks_[k.value()];
  const wire::VoteHeader header{.run_id = vote.run_id,
                                .epoch = vote.epoch,
                                .round = round_,
                                .attempt = vote.attempt,
                                .chunk = k,
                                .checksum = chunk.checksum};
  return {wire::EncodeVote(wire::BulkKind::kBallotChunk, header,
                           {chunk.bits.get(), plan_.Bytes(k, 1)}, chunk.bits),
          MessageKind::kBallot};
}

OutgoingMessage KeptBallot::ScalarsMessage(const VoteId& vote) const {
  v1::WorkerMessage message;
  *message.mutable_scalars() = *scalars_;
  message.mutable_scalars()->set_attempt(vote.attempt.value());
  return {wire::EncodeMessage(message), MessageKind::kBallot};
}

OutgoingMessage KeptBallot::AbstainMessage(const VoteId& vote) const {
  v1::WorkerMessage message;
  *message.mutable_abstain() = *abstain_;
  message.mutable_abstain()->set_attempt(vote.attempt.value());
  return {wire::EncodeMessage(message), MessageKind::kBallot};
}

std::vector<OutgoingMessage> KeptBallot::AllMessages(const VoteId& vote) const {
  std::vector<OutgoingMessage> out;
  for (uint32_t k = 0; k < chunks_.size(); ++k) {
    if (chunks_[k].bits != nullptr) out.push_back(ChunkMessage(ChunkIndex(k), vote));
  }
  if (scalars_) out.push_back(ScalarsMessage(vote));
  if (abstain_) out.push_back(AbstainMessage(vote));
  return out;
}

}  // namespace signvote
