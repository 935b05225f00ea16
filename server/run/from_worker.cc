#include "server/run/from_worker.h"

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "common/text.h"

namespace signvote::run {
namespace {

constexpr size_t kReasonBytesMax = 200;  // of a Leave, for people

AbstainReason ReasonFrom(v1::Abstain::Reason reason) {
  switch (reason) {
    case v1::Abstain::REASON_NONFINITE_LOSS:
      return AbstainReason::kNonFiniteLoss;
    case v1::Abstain::REASON_NONFINITE_GRADIENT:
      return AbstainReason::kNonFiniteGradient;
    default:
      return AbstainReason::kOther;
  }
}

ScalarsIn ScalarsFrom(const v1::Scalars& in) {
  ScalarsIn out{.round = Round(in.round()), .attempt = Attempt(in.attempt())};
  out.scalars.loss = in.loss();
  out.scalars.g_l1 = in.g_l1();
  out.scalars.g_l2_squared = in.g_l2_squared();
  out.scalars.nonfinite_coordinates = in.nonfinite_coordinates();
  out.scalars.samples = in.samples();
  out.scalars.wanted.assign(in.wanted().begin(), in.wanted().end());
  out.scalars.displacement_mean.assign(in.displacement_mean().begin(),
                                       in.displacement_mean().end());
  out.scalars.local_steps = in.local_steps();
  out.times = {.compute_us = in.compute_us(), .apply_us = in.apply_us()};
  if (in.has_held_out_loss()) {
    out.held_out = Evaluation::Measured{.loss = in.held_out_loss(),
                                        .error = in.held_out_error(),
                                        .round = Round(in.held_out_round()),
                                        .windows = in.held_out_hash()};
  }
  return out;
}

}  // namespace

absl::StatusOr<StreamWhat> InputFrom(v1::WorkerMessage message, bool joined) {
  if (message.has_join() == joined) {
    return absl::InvalidArgumentError(joined ? "a second Join on one session"
                                             : "the first message of a session must be Join");
  }
  switch (message.message_case()) {
    case v1::WorkerMessage::kJoin:
      return JoinIn{std::make_shared<v1::Join>(std::move(*message.mutable_join()))};
    case v1::WorkerMessage::kScalars:
      return ScalarsFrom(message.scalars());
    case v1::WorkerMessage::kAbstain:
      return AbstainIn{Round(message.abstain().round()), Attempt(message.abstain().attempt()),
                       ReasonFrom(message.abstain().reason())};
    case v1::WorkerMessage::kReplicaDigest:
      return DigestIn{Round(message.replica_digest().round()), message.replica_digest().digest()};
    case v1::WorkerMessage::kPong:
      return PongIn{message.pong().nonce()};
    case v1::WorkerMessage::kReady:
      return ReadyIn{Round(message.ready().round())};
    case v1::WorkerMessage::kLeave:
      return LeaveIn{ForPeople(message.leave().reason(), kReasonBytesMax)};
    case v1::WorkerMessage::kBallotChunk:
    case v1::WorkerMessage::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a message of no known kind");
}

}  // namespace signvote::run
