// The reader of hand-written messages (proto/wire/wire.h). Whatever it reads, the generated parser
// reads as well, and finds the same; and what our writer makes of it is read back.
//
// Input: one byte for the kind, one for the size of the slices in which the network delivers, then
// the message.

#include <string>
#include <vector>

#include "common/check.h"
#include "common/checksum.h"
#include "proto/wire/wire.h"
#include "signvote/v1/training.pb.h"
#include "tests/fuzz/fuzz_target.h"

namespace signvote::wire {
namespace {

grpc::ByteBuffer InSlices(const std::string& bytes, size_t slice) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += slice)
    slices.emplace_back(bytes.data() + at, std::min(slice, bytes.size() - at));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

// The payload of a view, and that copying it with a right and a wrong checksum agrees.
std::string PayloadOf(const grpc::ByteBuffer& buffer, uint64_t offset, uint64_t bytes) {
  std::vector<uint8_t> plain(bytes), checked(bytes);
  const absl::Status copied = CopyPayloadChecked(buffer, offset, 0, plain);
  SIGNVOTE_CHECK(copied.ok() || absl::IsDataLoss(copied));
  const uint64_t checksum = Xxh3(plain.data(), plain.size());
  SIGNVOTE_CHECK(CopyPayloadChecked(buffer, offset, checksum, checked).ok());
  SIGNVOTE_CHECK(plain == checked);
  SIGNVOTE_CHECK(absl::IsDataLoss(CopyPayloadChecked(buffer, offset, checksum + 1, checked)));
  plain.push_back(0);  // one byte more may be there, behind the chunk, or not: an error, no crash
  (void)CopyPayloadChecked(buffer, offset, 0, plain);
  return std::string(checked.begin(), checked.end());
}

std::span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

template <typename Chunk>
void CheckVote(BulkKind kind, const VoteView& view, const grpc::ByteBuffer& buffer,
               const Chunk& chunk) {
  const VoteHeader& header = view.header;
  const std::string payload = PayloadOf(buffer, view.payload_offset, view.payload_bytes);
  SIGNVOTE_CHECK(chunk.run_id() == header.run_id.bytes());
  SIGNVOTE_CHECK(chunk.epoch() == header.epoch.value());
  SIGNVOTE_CHECK(chunk.round() == header.round.value());
  SIGNVOTE_CHECK(chunk.attempt() == header.attempt.value());
  SIGNVOTE_CHECK(chunk.chunk() == header.chunk.value());
  SIGNVOTE_CHECK(chunk.checksum() == header.checksum);
  SIGNVOTE_CHECK(chunk.payload() == payload);
  const grpc::ByteBuffer again = EncodeVote(kind, header, Bytes(payload), nullptr);
  const auto read = DecodeVote(kind, again);
  SIGNVOTE_CHECK(read.ok() && read->has_value());
  SIGNVOTE_CHECK((*read)->header.run_id == header.run_id);
  SIGNVOTE_CHECK((*read)->header.round == header.round);
  SIGNVOTE_CHECK((*read)->header.chunk == header.chunk);
  SIGNVOTE_CHECK(PayloadOf(again, (*read)->payload_offset, (*read)->payload_bytes) == payload);
}

void CheckState(BulkKind kind, const StateView& view, const grpc::ByteBuffer& buffer,
                const v1::StateChunk& chunk) {
  const StateHeader& header = view.header;
  const std::string payload = PayloadOf(buffer, view.payload_offset, view.payload_bytes);
  SIGNVOTE_CHECK(chunk.round() == header.round.value());
  SIGNVOTE_CHECK(chunk.first() == header.first);
  SIGNVOTE_CHECK(chunk.count() == header.count);
  SIGNVOTE_CHECK(chunk.checksum() == header.checksum);
  SIGNVOTE_CHECK(chunk.plane() == header.plane);
  SIGNVOTE_CHECK(chunk.payload() == payload);
  const grpc::ByteBuffer again = EncodeState(kind, header, Bytes(payload), nullptr);
  const auto read = DecodeState(kind, again);
  SIGNVOTE_CHECK(read.ok() && read->has_value());
  SIGNVOTE_CHECK((*read)->header.first == header.first);
  SIGNVOTE_CHECK((*read)->header.plane == header.plane);
  SIGNVOTE_CHECK(PayloadOf(again, (*read)->payload_offset, (*read)->payload_bytes) == payload);
}

void Read(BulkKind kind, const std::string& bytes, size_t slice) {
  const grpc::ByteBuffer buffer = InSlices(bytes, slice);
  if (kind == BulkKind::kBallotChunk || kind == BulkKind::kVerdictChunk) {
    const auto view = DecodeVote(kind, buffer);
    if (!view.ok()) SIGNVOTE_CHECK(absl::IsInvalidArgument(view.status()));
    if (!view.ok() || !view->has_value()) return;
    if (kind == BulkKind::kBallotChunk) {
      v1::WorkerMessage message;
      SIGNVOTE_CHECK(ParseMessage(buffer, &message).ok() && message.has_ballot_chunk());
      CheckVote(kind, **view, buffer, message.ballot_chunk());
    } else {
      v1::ServerMessage message;
      SIGNVOTE_CHECK(ParseMessage(buffer, &message).ok() && message.has_verdict_chunk());
      CheckVote(kind, **view, buffer, message.verdict_chunk());
    }
    return;
  }
  const auto view = DecodeState(kind, buffer);
  if (!view.ok()) SIGNVOTE_CHECK(absl::IsInvalidArgument(view.status()));
  if (!view.ok() || !view->has_value()) return;
  if (kind == BulkKind::kStateChunk) {
    v1::StateChunk message;
    SIGNVOTE_CHECK(ParseMessage(buffer, &message).ok());
    CheckState(kind, **view, buffer, message);
  } else {
    v1::UploadStateRequest message;
    SIGNVOTE_CHECK(ParseMessage(buffer, &message).ok() && message.has_chunk());
    CheckState(kind, **view, buffer, message.chunk());
  }
}

}  // namespace
}  // namespace signvote::wire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using signvote::wire::BulkKind;
  signvote::fuzz::Input input(data, size);
  constexpr BulkKind kKinds[] = {BulkKind::kBallotChunk, BulkKind::kVerdictChunk,
                                 BulkKind::kStateChunk, BulkKind::kUploadChunk};
  const BulkKind kind = kKinds[input.Byte() % 4];
  const size_t slice = size_t{1} + input.Byte();
  signvote::wire::Read(kind, input.Rest(), slice);
  return 0;
}
