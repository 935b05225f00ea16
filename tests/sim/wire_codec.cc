#include "tests/sim/wire_codec.h"

#include <utility>

#include "common/status.h"
#include "proto/wire/wire.h"

namespace signvote::sim {
namespace {

absl::StatusOr<VoteFrame> PassVote(wire::BulkKind kind, const VoteFrame& frame) {
  const grpc::ByteBuffer bytes = wire::EncodeVote(kind,
                                                  {.run_id = frame.run_id,
                                                   .epoch = frame.epoch,
                                                   .round = frame.round,
                                                   .attempt = frame.attempt,
                                                   .chunk = frame.chunk,
                                                   .checksum = frame.checksum},
                                                  frame.payload, frame.owner);
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::VoteView> view,
                            wire::DecodeVote(kind, bytes));
  if (!view.has_value()) return absl::InternalError("a vote was read as another message");
  auto payload = std::make_shared<std::vector<uint8_t>>(view->payload_bytes);
  const absl::Status copied =
      wire::CopyPayloadChecked(bytes, view->payload_offset, view->header.checksum, *payload);
  // What is under way may have been damaged on purpose.
  if (!absl::IsDataLoss(copied)) SIGNVOTE_RETURN_IF_ERROR(copied);
  return VoteFrame{.run_id = view->header.run_id,
                   .epoch = view->header.epoch,
                   .round = view->header.round,
                   .attempt = view->header.attempt,
                   .chunk = view->header.chunk,
                   .checksum = view->header.checksum,
                   .payload = *payload,
                   .owner = payload};
}

template <typename Message>
absl::StatusOr<std::shared_ptr<const Message>> PassMessage(const Message& message,
                                                           wire::BulkKind kind) {
  const grpc::ByteBuffer bytes = wire::EncodeMessage(message);
  // What a session looks for first.
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::VoteView> view,
                            wire::DecodeVote(kind, bytes));
  if (view.has_value()) return absl::InternalError("a message was read as a vote");
  auto parsed = std::make_shared<Message>();
  SIGNVOTE_RETURN_IF_ERROR(wire::ParseMessage(bytes, parsed.get()));
  return std::shared_ptr<const Message>(std::move(parsed));
}

absl::StatusOr<StateFrame> PassState(wire::BulkKind kind, const StateFrame& frame) {
  const std::span<const uint8_t> payload(reinterpret_cast<const uint8_t*>(frame.values->data()),
                                         frame.values->size() * sizeof(float));
  const grpc::ByteBuffer bytes = wire::EncodeState(kind,
                                                   {.round = frame.round,
                                                    .first = frame.first,
                                                    .count = frame.values->size(),
                                                    .checksum = frame.checksum,
                                                    .plane = frame.plane},
                                                   payload, frame.values);
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::StateView> view,
                            wire::DecodeState(kind, bytes));
  if (!view.has_value() || view->payload_bytes != view->header.count * sizeof(float)) {
    return absl::InternalError("a part of a state was read as something else");
  }
  auto values = std::make_shared<std::vector<float>>(view->header.count);
  SIGNVOTE_RETURN_IF_ERROR(
      wire::CopyPayloadChecked(bytes, view->payload_offset, view->header.checksum,
                               {reinterpret_cast<uint8_t*>(values->data()), view->payload_bytes}));
  return StateFrame{.round = view->header.round,
                    .first = view->header.first,
                    .plane = view->header.plane,
                    .checksum = view->header.checksum,
                    .values = std::move(values)};
}

}  // namespace

absl::StatusOr<UpFrame> WireCodec::Pass(UpFrame frame) {
  ++passed_;
  constexpr wire::BulkKind kKind = wire::BulkKind::kBallotChunk;
  if (const auto* vote = std::get_if<VoteFrame>(&frame)) return PassVote(kKind, *vote);
  return PassMessage(*std::get<std::shared_ptr<const v1::WorkerMessage>>(frame), kKind);
}

absl::StatusOr<DownFrame> WireCodec::Pass(DownFrame frame) {
  ++passed_;
  constexpr wire::BulkKind kKind = wire::BulkKind::kVerdictChunk;
  if (const auto* vote = std::get_if<VoteFrame>(&frame)) return PassVote(kKind, *vote);
  return PassMessage(*std::get<std::shared_ptr<const v1::ServerMessage>>(frame), kKind);
}

absl::StatusOr<StateFrame> WireCodec::PassFetched(StateFrame frame) {
  ++passed_;
  return PassState(wire::BulkKind::kStateChunk, frame);
}

absl::StatusOr<StateFrame> WireCodec::PassUploaded(StateFrame frame) {
  ++passed_;
  return PassState(wire::BulkKind::kUploadChunk, frame);
}

}  // namespace signvote::sim
