#include "worker/vote/ballot_source.h"

#include <limits>

#include "absl/strings/str_cat.h"

namespace signvote {

absl::Status BallotSource::Bind(const RunInfo& run, ReplicaMemory*, BallotPacker*) {
  if (run.local_steps_max <= 1) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("the run takes up to ", run.local_steps_max,
                   " local steps per ballot, but this worker signs one gradient per ballot; use a "
                   "worker that takes local steps, or a server without --local-steps"));
}

absl::Status BallotSource::TakeGradient(uint32_t, const WholeGradient&) {
  return absl::UnimplementedError("this worker signs one gradient per ballot, chunk by chunk");
}

absl::Status BallotSource::PackChunk(ChunkIndex, uint8_t*) {
  return TakeGradient(0, WholeGradient());
}

absl::Status BallotSource::Displacement(uint64_t, std::span<float>) {
  return TakeGradient(0, WholeGradient());
}

double BallotSource::Scalar(ScalarKind) const { return std::numeric_limits<double>::quiet_NaN(); }

absl::Status BallotSource::SaveState(size_t plane, uint64_t, std::span<std::byte>) {
  return absl::InvalidArgumentError(
      absl::StrCat("there is no plane ", plane, ": the source of ballots carries none"));
}

absl::Status BallotSource::RestoreState(size_t plane, uint64_t, std::span<const std::byte>) {
  return SaveState(plane, 0, {});
}

absl::Status BallotSource::RestoreContinuation(Round, std::span<const float>) {
  return absl::InvalidArgumentError("the source of ballots continues nothing");
}

absl::Status GradientSource::Begin(const RoundTicket& ticket) {
  if (ticket.local_steps == 1 && ticket.start == BallotStart::kReplica) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("round ", ticket.round.value(), " asks for ", ticket.local_steps,
                   " local steps, but this worker signs one gradient per ballot; use a worker that "
                   "takes local steps, or a server without --local-steps"));
}

absl::Status GradientSource::MakeChunk(uint64_t, uint64_t, ConstTensorPointers) {
  return absl::OkStatus();
}

absl::Status GradientSource::Reset() { return absl::OkStatus(); }

}  // namespace signvote
