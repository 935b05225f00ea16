#include <cstring>
#include <limits>
#include <utility>

#include <grpcpp/support/proto_buffer_reader.h>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/status.h"
#include "proto/wire/wire.h"
#include "signvote/v1/training.pb.h"

namespace signvote::wire {
namespace {

// Protobuf's wire types.
enum WireType : uint32_t {
  kVarint = 0,
  kFixed64 = 1,
  kBytes = 2,
  kGroup = 3,
  kGroupEnd = 4,
  kFixed32 = 5
};

// Field numbers, as the generated code knows them. Ballot and verdict chunks share all of theirs.
namespace vote_field {
constexpr uint32_t kRunId = v1::BallotChunk::kRunIdFieldNumber;
constexpr uint32_t kEpoch = v1::BallotChunk::kEpochFieldNumber;
constexpr uint32_t kRound = v1::BallotChunk::kRoundFieldNumber;
constexpr uint32_t kAttempt = v1::BallotChunk::kAttemptFieldNumber;
constexpr uint32_t kChunk = v1::BallotChunk::kChunkFieldNumber;
constexpr uint32_t kChecksum = v1::BallotChunk::kChecksumFieldNumber;
static_assert(v1::VerdictChunk::kRunIdFieldNumber == kRunId);
static_assert(v1::VerdictChunk::kEpochFieldNumber == kEpoch);
static_assert(v1::VerdictChunk::kRoundFieldNumber == kRound);
static_assert(v1::VerdictChunk::kAttemptFieldNumber == kAttempt);
static_assert(v1::VerdictChunk::kChunkFieldNumber == kChunk);
static_assert(v1::VerdictChunk::kChecksumFieldNumber == kChecksum);
}  // namespace vote_field
namespace state_field {
constexpr uint32_t kRound = v1::StateChunk::kRoundFieldNumber;
constexpr uint32_t kFirst = v1::StateChunk::kFirstFieldNumber;
constexpr uint32_t kCount = v1::StateChunk::kCountFieldNumber;
constexpr uint32_t kChecksum = v1::StateChunk::kChecksumFieldNumber;
constexpr uint32_t kPlane = v1::StateChunk::kPlaneFieldNumber;
}  // namespace state_field
constexpr uint32_t kPayload = v1::BallotChunk::kPayloadFieldNumber;
static_assert(v1::VerdictChunk::kPayloadFieldNumber == kPayload);
static_assert(v1::StateChunk::kPayloadFieldNumber == kPayload);
// Highest number of WorkerMessage's and ServerMessage's oneof fields.
constexpr uint32_t kStreamMessageLast = v1::WorkerMessage::kJoinFieldNumber;
static_assert(v1::ServerMessage::kWelcomeFieldNumber == kStreamMessageLast);
// The longest header: the envelope's tag and length, then a run id, four numbers, a checksum, and
// the payload's tag and length. A tag below field 16 is one byte, a varint at most ten.
constexpr size_t kTagBytes = 1;
constexpr size_t kVarintBytesMax = 10;
constexpr size_t kVarint32BytesMax = 5;
constexpr size_t kInnerBytesMax = (kTagBytes + 1 + RunId::kBytes) +
                                  4 * (kTagBytes + kVarintBytesMax) + (kTagBytes + 8) +
                                  (kTagBytes + kVarintBytesMax);
constexpr size_t kHeaderBytesMax = kTagBytes + kVarintBytesMax + kInnerBytesMax;
static_assert(kPayload < 16, "tags are one byte");
// Deeper unknown groups are taken for an attack on the stack.
constexpr int kGroupDepthMax = 16;

bool IsVote(BulkKind kind) {
  return kind == BulkKind::kBallotChunk || kind == BulkKind::kVerdictChunk;
}

// The field of its envelope that a bulk message is; 0: it travels without one.
uint32_t EnvelopeField(BulkKind kind) {
  switch (kind) {
    case BulkKind::kBallotChunk:
      return v1::WorkerMessage::kBallotChunkFieldNumber;
    case BulkKind::kVerdictChunk:
      return v1::ServerMessage::kVerdictChunkFieldNumber;
    case BulkKind::kUploadChunk:
      return v1::UploadStateRequest::kChunkFieldNumber;
    case BulkKind::kStateChunk:
      break;
  }
  return 0;
}

const char* KindName(BulkKind kind) {
  switch (kind) {
    case BulkKind::kBallotChunk:
      return "ballot chunk";
    case BulkKind::kVerdictChunk:
      return "verdict chunk";
    case BulkKind::kStateChunk:
      return "state chunk";
    case BulkKind::kUploadChunk:
      return "state chunk of an upload";
  }
  return "bulk message";
}

// ---- writing ------------------------------------------------------------------------------------

// Never runs out: what is written into one is bounded by kHeaderBytesMax.
class HeaderWriter {
 public:
  void Varint(uint64_t value) {
    while (value >= 0x80) {
      bytes_[size_++] = static_cast<uint8_t>(value | 0x80);
      value >>= 7;
    }
    bytes_[size_++] = static_cast<uint8_t>(value);
  }
  void Tag(uint32_t field, WireType type) { Varint(field << 3 | type); }
  // Zero is proto3's default and is left out, as generated writers do.
  void VarintField(uint32_t field, uint64_t value) {
    if (value == 0) return;
    Tag(field, kVarint);
    Varint(value);
  }
  void Fixed64Field(uint32_t field, uint64_t value) {
    if (value == 0) return;
    Tag(field, kFixed64);
    std::memcpy(&bytes_[size_], &value, sizeof(value));
    size_ += sizeof(value);
  }
  void BytesField(uint32_t field, std::string_view value) {
    Tag(field, kBytes);
    Varint(value.size());
    std::memcpy(&bytes_[size_], value.data(), value.size());
    size_ += value.size();
  }
  void Append(const HeaderWriter& other) {
    std::memcpy(&bytes_[size_], other.bytes_, other.size_);
    size_ += other.size_;
  }
  const uint8_t* data() const { return bytes_; }
  size_t size() const { return size_; }

 private:
  uint8_t bytes_[kHeaderBytesMax];
  size_t size_ = 0;
};

void ReleaseOwner(void* owner) { delete static_cast<std::shared_ptr<const void>*>(owner); }

// `inner` holds the chunk's header fields up to and including the payload's tag and length.
grpc::ByteBuffer Assemble(uint32_t envelope_field, const HeaderWriter& inner,
                          std::span<const uint8_t> payload, std::shared_ptr<const void> owner) {
  HeaderWriter header;
  if (envelope_field != 0) {
    header.Tag(envelope_field, kBytes);
    header.Varint(inner.size() + payload.size());
  }
  header.Append(inner);
  // gRPC never writes through a slice; its constructor merely lacks a const form.
  const grpc::Slice slices[2] = {
      grpc::Slice(header.data(), header.size()),
      grpc::Slice(const_cast<uint8_t*>(payload.data()), payload.size(), &ReleaseOwner,
                  new std::shared_ptr<const void>(std::move(owner)))};
  return grpc::ByteBuffer(slices, 2);
}

static_assert(sizeof(VoteHeader::checksum) == 8 && sizeof(StateHeader::checksum) == 8);

// ---- reading ------------------------------------------------------------------------------------

// Reads protobuf tokens from the slices of a received message without flattening them.
class Cursor {
 public:
  explicit Cursor(const grpc::ByteBuffer& buffer)
      : buffer_(buffer), length_(buffer.Valid() ? buffer.Length() : 0), reader_(&buffer_) {}

  uint64_t position() const { return position_; }
  uint64_t length() const { return length_; }

  [[nodiscard]] bool Byte(uint8_t* out) {
    if (piece_left_ == 0 && !NextPiece()) return false;
    *out = *piece_++;
    --piece_left_;
    ++position_;
    return true;
  }
  [[nodiscard]] bool Varint(uint64_t* out) { return Varint(out, kVarintBytesMax); }
  // A tag or a length: 32 bits, for which generated readers take five bytes and no more.
  [[nodiscard]] bool Varint32(uint64_t* out) {
    return Varint(out, kVarint32BytesMax) && *out <= std::numeric_limits<uint32_t>::max();
  }
  [[nodiscard]] bool Copy(void* out, uint64_t bytes) {
    auto* to = static_cast<uint8_t*>(out);
    while (bytes > 0) {
      if (piece_left_ == 0 && !NextPiece()) return false;
      const size_t n = bytes < piece_left_ ? static_cast<size_t>(bytes) : piece_left_;
      std::memcpy(to, piece_, n);
      Consume(n);
      to += n;
      bytes -= n;
    }
    return true;
  }
  [[nodiscard]] bool Skip(uint64_t bytes) {
    if (bytes > length_ - position_) return false;
    while (bytes > 0) {
      if (piece_left_ == 0 && !NextPiece()) return false;
      const size_t n = bytes < piece_left_ ? static_cast<size_t>(bytes) : piece_left_;
      Consume(n);
      bytes -= n;
    }
    return true;
  }
  // The rest of the current slice, at most `bytes_max`; empty at the end of the message.
  std::span<const uint8_t> Take(uint64_t bytes_max) {
    if (piece_left_ == 0 && !NextPiece()) return {};
    const size_t n = bytes_max < piece_left_ ? static_cast<size_t>(bytes_max) : piece_left_;
    std::span<const uint8_t> out(piece_, n);
    Consume(n);
    return out;
  }

 private:
  bool Varint(uint64_t* out, size_t bytes_max) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes_max; ++i) {
      uint8_t byte;
      if (!Byte(&byte)) return false;
      if (i == kVarintBytesMax - 1 && byte > 1) return false;  // more than 64 bits
      value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
      if (byte < 0x80) {
        *out = value;
        return true;
      }
    }
    return false;
  }
  void Consume(size_t n) {
    piece_ += n;
    piece_left_ -= n;
    position_ += n;
  }
  bool NextPiece() {
    if (position_ >= length_) return false;
    const void* data = nullptr;
    int size = 0;
    do {
      if (!reader_.Next(&data, &size)) return false;
    } while (size == 0);
    piece_ = static_cast<const uint8_t*>(data);
    piece_left_ = static_cast<size_t>(size);
    return true;
  }

  grpc::ByteBuffer
      buffer_;  // the reader wants a mutable one; copying it references the same slices
  const uint64_t length_;
  grpc::ProtoBufferReader reader_;
  const uint8_t* piece_ = nullptr;
  size_t piece_left_ = 0;
  uint64_t position_ = 0;
};

[[nodiscard]] bool ReadTag(Cursor* in, uint32_t* field, uint32_t* type) {
  uint64_t tag;
  if (!in->Varint32(&tag) || (tag >> 3) == 0) return false;
  *field = static_cast<uint32_t>(tag >> 3);
  *type = static_cast<uint32_t>(tag & 7);
  return true;
}

// Skips a field's value; `end` is where the enclosing message ends.
[[nodiscard]] bool SkipValue(Cursor* in, uint32_t field, uint32_t type, uint64_t end,
                             int depth = 0) {
  uint64_t value;
  switch (type) {
    case kVarint:
      return in->Varint(&value) && in->position() <= end;
    case kFixed64:
      return end - in->position() >= 8 && in->Skip(8);
    case kFixed32:
      return end - in->position() >= 4 && in->Skip(4);
    case kBytes:
      return in->Varint32(&value) && in->position() <= end && value <= end - in->position() &&
             in->Skip(value);
    case kGroup: {
      if (depth >= kGroupDepthMax) return false;
      while (in->position() < end) {
        uint32_t inner_field, inner_type;
        if (!ReadTag(in, &inner_field, &inner_type) || in->position() > end) return false;
        if (inner_type == kGroupEnd) return inner_field == field;
        if (!SkipValue(in, inner_field, inner_type, end, depth + 1)) return false;
      }
      return false;
    }
    default:
      return false;
  }
}

absl::Status Malformed(BulkKind kind, const char* what) {
  return absl::InvalidArgumentError(absl::StrCat("malformed ", KindName(kind), ": ", what));
}

// Where the chunk's own fields lie in the message. found = false: it is another message.
struct Envelope {
  bool found = false;
  uint64_t begin = 0;
  uint64_t end = 0;
};

// Whether `field` is one of the envelope's other messages.
bool IsOtherMessage(BulkKind kind, uint32_t field) {
  return IsVote(kind) ? field != EnvelopeField(kind) && field <= kStreamMessageLast
                      : field == v1::UploadStateRequest::kTicketFieldNumber;
}

absl::StatusOr<Envelope> FindEnvelope(BulkKind kind, const grpc::ByteBuffer& buffer) {
  Cursor in(buffer);
  if (kind == BulkKind::kStateChunk) return Envelope{true, 0, in.length()};
  const uint32_t wanted = EnvelopeField(kind);
  Envelope envelope;
  while (in.position() < in.length()) {
    uint32_t field, type;
    if (!ReadTag(&in, &field, &type)) return Malformed(kind, "bad field tag in the envelope");
    if (field == wanted && type == kBytes) {
      if (envelope.found) return Malformed(kind, "more than one message in the envelope");
      uint64_t bytes;
      if (!in.Varint32(&bytes) || bytes > in.length() - in.position())
        return Malformed(kind, "truncated");
      envelope = {true, in.position(), in.position() + bytes};
      if (!in.Skip(bytes)) return Malformed(kind, "truncated");
      continue;
    }
    if (type == kBytes && IsOtherMessage(kind, field)) {
      if (envelope.found) return Malformed(kind, "more than one message in the envelope");
      return Envelope{};
    }
    if (!SkipValue(&in, field, type, in.length())) return Malformed(kind, "truncated");
  }
  return envelope;
}

// Calls on_field(field, type, &in) for each field of the chunk; it returns true when it consumed
// the value, false to have it skipped, or an error. The payload is remembered in place.
template <typename OnField>
absl::Status ReadFields(BulkKind kind, const grpc::ByteBuffer& buffer, const Envelope& envelope,
                        uint64_t* payload_offset, uint64_t* payload_bytes, OnField on_field) {
  Cursor in(buffer);
  if (!in.Skip(envelope.begin)) return Malformed(kind, "truncated");
  while (in.position() < envelope.end) {
    uint32_t field, type;
    if (!ReadTag(&in, &field, &type) || in.position() > envelope.end)
      return Malformed(kind, "bad field tag");
    if (field == kPayload && type == kBytes) {
      uint64_t bytes;
      if (!in.Varint32(&bytes) || in.position() > envelope.end ||
          bytes > envelope.end - in.position()) {
        return Malformed(kind, "payload is longer than the message");
      }
      *payload_offset = in.position();
      *payload_bytes = bytes;
      if (!in.Skip(bytes)) return Malformed(kind, "truncated payload");
      continue;
    }
    absl::StatusOr<bool> consumed = on_field(field, type, &in);
    if (!consumed.ok()) return consumed.status();
    if (!*consumed && !SkipValue(&in, field, type, envelope.end))
      return Malformed(kind, "truncated field");
    if (in.position() > envelope.end) return Malformed(kind, "field is longer than the message");
  }
  return absl::OkStatus();
}

}  // namespace

grpc::ByteBuffer EncodeVote(BulkKind kind, const VoteHeader& header,
                            std::span<const uint8_t> payload, std::shared_ptr<const void> owner) {
  SIGNVOTE_CHECK(IsVote(kind));
  HeaderWriter inner;
  inner.BytesField(vote_field::kRunId, header.run_id.bytes());
  inner.VarintField(vote_field::kEpoch, header.epoch.value());
  inner.VarintField(vote_field::kRound, header.round.value());
  inner.VarintField(vote_field::kAttempt, header.attempt.value());
  inner.VarintField(vote_field::kChunk, header.chunk.value());
  inner.Fixed64Field(vote_field::kChecksum, header.checksum);
  inner.Tag(kPayload, kBytes);
  inner.Varint(payload.size());
  return Assemble(EnvelopeField(kind), inner, payload, std::move(owner));
}

grpc::ByteBuffer EncodeState(BulkKind kind, const StateHeader& header,
                             std::span<const uint8_t> payload, std::shared_ptr<const void> owner) {
  SIGNVOTE_CHECK(!IsVote(kind));
  HeaderWriter inner;
  inner.VarintField(state_field::kRound, header.round.value());
  inner.VarintField(state_field::kFirst, header.first);
  inner.VarintField(state_field::kCount, header.count);
  inner.Fixed64Field(state_field::kChecksum, header.checksum);
  inner.VarintField(state_field::kPlane, header.plane);
  inner.Tag(kPayload, kBytes);
  inner.Varint(payload.size());
  return Assemble(EnvelopeField(kind), inner, payload, std::move(owner));
}

absl::StatusOr<std::optional<VoteView>> DecodeVote(BulkKind kind, const grpc::ByteBuffer& buffer) {
  SIGNVOTE_ASSIGN_OR_RETURN(const Envelope envelope, FindEnvelope(kind, buffer));
  if (!envelope.found) return std::optional<VoteView>();
  VoteView view;
  bool has_run_id = false;
  auto on_field = [&](uint32_t field, uint32_t type, Cursor* in) -> absl::StatusOr<bool> {
    uint64_t value;
    if (field == vote_field::kRunId && type == kBytes) {
      char bytes[RunId::kBytes];
      if (!in->Varint32(&value)) return Malformed(kind, "truncated run_id");
      if (value != RunId::kBytes) return Malformed(kind, "run_id has not 16 bytes");
      if (!in->Copy(bytes, sizeof(bytes))) return Malformed(kind, "truncated run_id");
      SIGNVOTE_ASSIGN_OR_RETURN(view.header.run_id, RunId::FromBytes({bytes, sizeof(bytes)}));
      has_run_id = true;
      return true;
    }
    if (field == vote_field::kChecksum && type == kFixed64) {
      if (!in->Copy(&view.header.checksum, sizeof(view.header.checksum)))
        return Malformed(kind, "truncated checksum");
      return true;
    }
    const bool narrow = field == vote_field::kAttempt || field == vote_field::kChunk;
    const bool number = narrow || field == vote_field::kEpoch || field == vote_field::kRound;
    if (!number || type != kVarint) return false;
    if (!in->Varint(&value)) return Malformed(kind, "truncated number");
    if (narrow && value > std::numeric_limits<uint32_t>::max())
      return Malformed(kind, "attempt or chunk exceeds 32 bits");
    if (field == vote_field::kEpoch) view.header.epoch = Epoch(value);
    if (field == vote_field::kRound) view.header.round = Round(value);
    if (field == vote_field::kAttempt) view.header.attempt = Attempt(static_cast<uint32_t>(value));
    if (field == vote_field::kChunk) view.header.chunk = ChunkIndex(static_cast<uint32_t>(value));
    return true;
  };
  SIGNVOTE_RETURN_IF_ERROR(
      ReadFields(kind, buffer, envelope, &view.payload_offset, &view.payload_bytes, on_field));
  if (!has_run_id) return Malformed(kind, "run_id is missing");
  return std::optional<VoteView>(view);
}

absl::StatusOr<std::optional<StateView>> DecodeState(BulkKind kind,
                                                     const grpc::ByteBuffer& buffer) {
  SIGNVOTE_ASSIGN_OR_RETURN(const Envelope envelope, FindEnvelope(kind, buffer));
  if (!envelope.found) return std::optional<StateView>();
  StateView view;
  auto on_field = [&](uint32_t field, uint32_t type, Cursor* in) -> absl::StatusOr<bool> {
    uint64_t value;
    if (field == state_field::kChecksum && type == kFixed64) {
      if (!in->Copy(&view.header.checksum, sizeof(view.header.checksum)))
        return Malformed(kind, "truncated checksum");
      return true;
    }
    const bool number = field == state_field::kRound || field == state_field::kFirst ||
                        field == state_field::kCount || field == state_field::kPlane;
    if (!number || type != kVarint) return false;
    if (!in->Varint(&value)) return Malformed(kind, "truncated number");
    if (field == state_field::kRound) view.header.round = Round(value);
    if (field == state_field::kFirst) view.header.first = value;
    if (field == state_field::kCount) view.header.count = value;
    if (field == state_field::kPlane) {
      if (value > std::numeric_limits<uint32_t>::max())
        return Malformed(kind, "plane exceeds 32 bits");
      view.header.plane = static_cast<uint32_t>(value);
    }
    return true;
  };
  SIGNVOTE_RETURN_IF_ERROR(
      ReadFields(kind, buffer, envelope, &view.payload_offset, &view.payload_bytes, on_field));
  return std::optional<StateView>(view);
}

absl::Status CopyPayloadChecked(const grpc::ByteBuffer& buffer, uint64_t offset, uint64_t checksum,
                                std::span<uint8_t> out) {
  // Hashed in pieces that are still in the first-level cache from being copied, yet long enough for
  // the hash's pace.
  constexpr size_t kHashPieceBytes = 16 << 10;
  Cursor in(buffer);
  if (!in.Skip(offset)) return absl::InvalidArgumentError("message is shorter than its payload");
  Xxh3Stream hash;
  size_t copied = 0, hashed = 0;
  while (copied < out.size()) {
    const std::span<const uint8_t> piece = in.Take(out.size() - copied);
    if (piece.empty()) return absl::InvalidArgumentError("message is shorter than its payload");
    std::memcpy(out.data() + copied, piece.data(), piece.size());
    copied += piece.size();
    if (copied - hashed >= kHashPieceBytes) {
      hash.Update(out.data() + hashed, copied - hashed);
      hashed = copied;
    }
  }
  hash.Update(out.data() + hashed, copied - hashed);
  if (hash.Digest() != checksum) {
    return absl::DataLossError("checksum of the payload differs from the one in its header");
  }
  return absl::OkStatus();
}

grpc::ByteBuffer EncodeMessage(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

absl::Status ParseMessage(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message) {
  message->Clear();
  if (!buffer.Valid() || buffer.Length() == 0) return absl::OkStatus();
  grpc::ByteBuffer copy(buffer);
  grpc::ProtoBufferReader reader(&copy);
  if (!reader.status().ok() || !message->ParseFromZeroCopyStream(&reader)) {
    return absl::InvalidArgumentError(
        absl::StrCat("message is not a valid ", message->GetTypeName()));
  }
  return absl::OkStatus();
}

}  // namespace signvote::wire
