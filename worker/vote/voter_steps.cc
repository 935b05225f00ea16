// Ballots of local steps: voter.h.
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "worker/vote/voter.h"

namespace signvote {

bool Voter::TakesAnother() const { return gradient_ < gradients_ && !now_.withdrawn.has_value(); }

bool Voter::wants_gradient() const {
  if (stage_ != Stage::kOpen || !steps_ || !TakesAnother()) return false;
  // A ballot of no step at all would say nothing.
  return gradient_ == 0 || !ticket_.steps_until.has_value() || clock_->Now() < *ticket_.steps_until;
}

absl::Status Voter::EndGradient(double loss, uint64_t samples) {
  SIGNVOTE_RETURN_IF_ERROR(Expect(stage_ == Stage::kGradient && steps_, "EndGradient"));
  if (!std::isfinite(loss)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the loss of gradient ", gradient_, " is ", loss, "; call Abstain"));
  }
  SIGNVOTE_RETURN_IF_ERROR(CloseGradient());
  const Time start = clock_->Now();
  now_.status = TakeStep();
  SIGNVOTE_RETURN_IF_ERROR(now_.status);
  now_.sent.packing += clock_->Now() - start;
  now_.loss += loss;
  now_.sent.scalars.samples += samples;
  ++gradient_;
  stage_ = Stage::kOpen;
  return absl::OkStatus();
}

absl::Status Voter::TakeStep() {
  SIGNVOTE_ASSIGN_OR_RETURN(const ChunkScalars sums, packer_->Sums(now_.g, nullptr));
  now_.sums.AddChunk(sums);
  if (sums.nonfinite > 0) {
    now_.withdrawn = AbstainReason::kNonFiniteGradient;
    return absl::OkStatus();
  }
  return source_->TakeGradient(gradient_,
                               {.g = now_.g,
                                .l2_squared = sums.g_l2_squared,
                                .clip = static_cast<float>(ClipFactor(sums.g_l2_squared))});
}

absl::StatusOr<SentBallot> Voter::FinishSteps(std::optional<HeldOutReport> held_out) {
  SIGNVOTE_RETURN_IF_ERROR(
      Expect(stage_ == Stage::kOpen && steps_ && (gradient_ > 0 || now_.withdrawn.has_value()),
             "FinishSteps"));
  BallotScalars& scalars = now_.sent.scalars;
  if (gradient_ > 0) {
    scalars.loss = now_.loss / gradient_;
    scalars.g_l1 = now_.sums.g_l1 / gradient_;
    scalars.g_l2_squared = now_.sums.g_l2_squared / gradient_;
  }
  scalars.nonfinite_coordinates = now_.sums.nonfinite;
  scalars.local_steps = gradient_;
  scalars.held_out = std::move(held_out);
  const Time start = clock_->Now();
  now_.status = source_->EndSteps();
  SIGNVOTE_RETURN_IF_ERROR(now_.status);
  if (now_.withdrawn.has_value()) return Withdraw(*now_.withdrawn);
  // Before the first chunk: a chunk that was sent stands.
  for (const float mean : source_->displacement_mean()) {
    if (!std::isfinite(mean)) return Withdraw(AbstainReason::kNonFiniteGradient);
  }
  if (!ticket_.silent()) now_.status = SendDisplacement();
  SIGNVOTE_RETURN_IF_ERROR(now_.status);
  if (now_.withdrawn.has_value()) return Withdraw(*now_.withdrawn);
  now_.sent.packing += clock_->Now() - start;
  return SendScalars();
}

absl::Status Voter::SendDisplacement() {
  for (uint32_t chunk = run_.plan.chunks(); chunk-- > 0;) {
    const ChunkIndex k(chunk);
    uint8_t* const bits = ballot_.get() + run_.ballot_plan.Offset(k);
    SIGNVOTE_RETURN_IF_ERROR(source_->PackChunk(k, bits));
    if (run_.ballot_plan.kind(k) != PayloadKind::kSigns) {
      std::vector<float> displacement(run_.plan.Count(k));
      SIGNVOTE_RETURN_IF_ERROR(source_->Displacement(run_.plan.First(k), displacement));
      if (!MakeDense(k, std::move(displacement))) {
        now_.withdrawn = AbstainReason::kNonFiniteGradient;
        return absl::OkStatus();
      }
    }
    SIGNVOTE_RETURN_IF_ERROR(session_->SendChunk(k, std::shared_ptr<const uint8_t>(ballot_, bits)));
    if (!now_.sent.first_chunk.has_value()) now_.sent.first_chunk = clock_->Now();
  }
  return absl::OkStatus();
}

// What is told of one gradient at the replica cannot be told of several elsewhere.
absl::StatusOr<double> Voter::WantedOfSteps(ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kLocalInner:
    case ScalarKind::kLocalProduct:
      return source_->Scalar(kind);
    case ScalarKind::kX0Distance:
      return Wanted(kind);
    default:
      return std::numeric_limits<double>::quiet_NaN();
  }
}

}  // namespace signvote
