#pragma once
// What both ends of the wire share and neither the engine nor the trainer may know: gRPC's byte
// buffers, the bulk messages, status mapping, credentials.
//
// Bulk messages (ballot chunks, verdict chunks, state chunks) are valid protobuf, but written and
// read by hand: small header fields first, then the payload's tag and length, then the payload as
// slices of the sender's own buffer. They are never copied on the way out, and copied once, into
// their final place, on the way in.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"

namespace signvote::wire {

inline constexpr uint32_t kProtocolVersion = 2;
inline constexpr size_t kTicketBytes = 16;
inline constexpr uint32_t kPlaneReplica = 0;
inline constexpr uint32_t kPlaneX0 = 1;
inline constexpr uint64_t kStateChunkCoordinates = uint64_t{1} << 18;

// Which message of WorkerMessage / ServerMessage / UploadStateRequest a bulk message travels in.
enum class BulkKind { kBallotChunk, kVerdictChunk, kStateChunk, kUploadChunk };

// Header of a BallotChunk or VerdictChunk.
struct VoteHeader {
  RunId run_id;
  Epoch epoch;
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
  uint64_t checksum = 0;
};
// Header of a StateChunk.
struct StateHeader {
  Round round;
  uint64_t first = 0;
  uint64_t count = 0;
  uint64_t checksum = 0;
  uint32_t plane = 0;  // kPlaneReplica or kPlaneX0
};

// The payload is referenced, not copied: `owner` is kept alive until gRPC has let go of the bytes.
// REQUIRES: EncodeVote: a ballot or verdict chunk; EncodeState: a state chunk, fetched or uploaded.
grpc::ByteBuffer EncodeVote(BulkKind kind, const VoteHeader& header,
                            std::span<const uint8_t> payload, std::shared_ptr<const void> owner);
grpc::ByteBuffer EncodeState(BulkKind kind, const StateHeader& header,
                             std::span<const uint8_t> payload, std::shared_ptr<const void> owner);

// Looks at the start of a received message. nullopt: not a bulk message of `kind`; parse it with
// ParseMessage.
// INVALID_ARGUMENT: it is one, but malformed: truncated, a length beyond the message, a number beyond
// its field, a run_id of another length, or two messages in one envelope. Fields in any order are
// legal protobuf and accepted; unknown ones are skipped.
// The payload's place inside the buffer is remembered in the view, nothing is copied yet. It lies
// within the message, whose size gRPC has bounded; whether it is as long as its chunk, and which
// plane or chunk exists, only the caller knows and checks before it copies.
struct VoteView {
  VoteHeader header;
  uint64_t payload_offset = 0;  // in the message
  uint64_t payload_bytes = 0;
};
struct StateView {
  StateHeader header;
  uint64_t payload_offset = 0;
  uint64_t payload_bytes = 0;
};
// REQUIRES: `kind` as for EncodeVote and EncodeState.
absl::StatusOr<std::optional<VoteView>> DecodeVote(BulkKind kind, const grpc::ByteBuffer& buffer);
absl::StatusOr<std::optional<StateView>> DecodeState(BulkKind kind, const grpc::ByteBuffer& buffer);

// Copies bytes [offset, offset + out.size()) of the message into `out`, computing XXH3-64 of them on
// the way. INVALID_ARGUMENT: the message is shorter. DATA_LOSS "checksum": that is not `checksum`;
// the bytes are copied all the same.
absl::Status CopyPayloadChecked(const grpc::ByteBuffer& buffer, uint64_t offset, uint64_t checksum,
                                std::span<uint8_t> out);

// Everything that is not bulk.
grpc::ByteBuffer EncodeMessage(const google::protobuf::MessageLite& message);
absl::Status ParseMessage(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message);

// absl and gRPC number their codes alike; these are the only two places that rely on it. A message
// beyond 2000 bytes is cut: gRPC would replace status and message by an error of its own.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace signvote::wire
