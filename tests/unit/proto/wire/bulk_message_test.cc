#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "common/checksum.h"
#include "common/rng.h"
#include "proto/wire/wire.h"
#include "signvote/v1/training.pb.h"

namespace signvote::wire {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes RandomPayload(size_t bytes, uint64_t seed) {
  Bytes out(bytes);
  Rng rng(seed, 1);
  for (uint8_t& byte : out) byte = static_cast<uint8_t>(rng.Next());
  return out;
}

std::string Flatten(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string out;
  for (const grpc::Slice& slice : slices)
    out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return out;
}

// As the network delivers it: slices of `piece` bytes.
grpc::ByteBuffer InPieces(const std::string& bytes, size_t piece) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += piece) {
    slices.emplace_back(bytes.data() + at, std::min(piece, bytes.size() - at));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

VoteHeader SomeHeader(const Bytes& payload) {
  return {.run_id = RunId::FromRandom(0x1234567890abcdef, 42),
          .epoch = Epoch(3),
          .round = Round(70000),
          .attempt = Attempt(2),
          .chunk = ChunkIndex(5),
          .checksum = Xxh3(payload.data(), payload.size())};
}

void ExpectEqual(const VoteHeader& a, const VoteHeader& b) {
  EXPECT_EQ(a.run_id, b.run_id);
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.round, b.round);
  EXPECT_EQ(a.attempt, b.attempt);
  EXPECT_EQ(a.chunk, b.chunk);
  EXPECT_EQ(a.checksum, b.checksum);
}

template <typename Chunk>
void ExpectSame(const Chunk& chunk, const VoteHeader& header, const Bytes& payload) {
  EXPECT_EQ(chunk.run_id(), header.run_id.bytes());
  EXPECT_EQ(chunk.epoch(), header.epoch.value());
  EXPECT_EQ(chunk.round(), header.round.value());
  EXPECT_EQ(chunk.attempt(), header.attempt.value());
  EXPECT_EQ(chunk.chunk(), header.chunk.value());
  EXPECT_EQ(chunk.checksum(), header.checksum);
  EXPECT_EQ(chunk.payload(), std::string(payload.begin(), payload.end()));
}

v1::BallotChunk GeneratedBallot(const VoteHeader& header, const Bytes& payload) {
  v1::BallotChunk chunk;
  chunk.set_run_id(std::string(header.run_id.bytes()));
  chunk.set_epoch(header.epoch.value());
  chunk.set_round(header.round.value());
  chunk.set_attempt(header.attempt.value());
  chunk.set_chunk(header.chunk.value());
  chunk.set_checksum(header.checksum);
  chunk.set_payload(payload.data(), payload.size());
  return chunk;
}

// The payload whatever its checksum.
void Copy(const grpc::ByteBuffer& buffer, uint64_t offset, Bytes* out) {
  const absl::Status status = CopyPayloadChecked(buffer, offset, 0, *out);
  ASSERT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
}

TEST(BulkMessageTest, GeneratedParserReadsWhatOurWriterWrites) {
  for (const size_t bytes : {0, 1, 127, 128, 4096, 300000}) {
    const Bytes payload = RandomPayload(bytes, bytes);
    const VoteHeader header = SomeHeader(payload);
    v1::WorkerMessage up;
    ASSERT_TRUE(
        up.ParseFromString(Flatten(EncodeVote(BulkKind::kBallotChunk, header, payload, nullptr))));
    ASSERT_TRUE(up.has_ballot_chunk());
    ExpectSame(up.ballot_chunk(), header, payload);
    v1::ServerMessage down;
    ASSERT_TRUE(down.ParseFromString(
        Flatten(EncodeVote(BulkKind::kVerdictChunk, header, payload, nullptr))));
    ASSERT_TRUE(down.has_verdict_chunk());
    ExpectSame(down.verdict_chunk(), header, payload);
  }
}

TEST(BulkMessageTest, OurReaderReadsWhatGeneratedWriterWritesInSlicesOfAnySize) {
  for (const size_t bytes : {0, 1, 200, 5000}) {
    const Bytes payload = RandomPayload(bytes, bytes);
    const VoteHeader header = SomeHeader(payload);
    v1::WorkerMessage message;
    *message.mutable_ballot_chunk() = GeneratedBallot(header, payload);
    const std::string wire = message.SerializeAsString();
    for (const size_t piece : {1, 2, 3, 7, 64, 100000}) {
      const grpc::ByteBuffer buffer = InPieces(wire, piece);
      const auto view = DecodeVote(BulkKind::kBallotChunk, buffer);
      ASSERT_TRUE(view.ok()) << view.status();
      ASSERT_TRUE(view->has_value());
      ExpectEqual((*view)->header, header);
      ASSERT_EQ((*view)->payload_bytes, bytes);
      Bytes out(bytes);
      ASSERT_TRUE(CopyPayloadChecked(buffer, (*view)->payload_offset, header.checksum, out).ok());
      EXPECT_EQ(out, payload);
    }
  }
}

TEST(BulkMessageTest, EverySmallHeaderSurvivesTheWay) {
  const Bytes payload = {1, 2, 3};
  Rng rng(7, 7);
  for (int i = 0; i < 2000; ++i) {
    VoteHeader header;
    header.run_id = RunId::FromRandom(rng.Next(), rng.Next());
    header.epoch = Epoch(rng.Next() >> rng.Below(64));
    header.round = Round(rng.Next() >> rng.Below(64));
    header.attempt = Attempt(static_cast<uint32_t>(rng.Next() >> (32 + rng.Below(32))));
    header.chunk = ChunkIndex(static_cast<uint32_t>(rng.Next() >> (32 + rng.Below(32))));
    header.checksum = rng.Next();
    const auto view = DecodeVote(BulkKind::kVerdictChunk,
                                 EncodeVote(BulkKind::kVerdictChunk, header, payload, nullptr));
    ASSERT_TRUE(view.ok() && view->has_value());
    ExpectEqual((*view)->header, header);
  }
}

// A field as protobuf writes it, so that the test can put fields in any order.
std::string Field(uint32_t number, uint32_t type, const std::string& value) {
  std::string out;
  uint64_t tag = number << 3 | type;
  do {
    out.push_back(static_cast<char>((tag & 0x7f) | (tag > 0x7f ? 0x80 : 0)));
    tag >>= 7;
  } while (tag != 0);
  return out + value;
}
std::string Sized(const std::string& value) {
  std::string out;
  uint64_t n = value.size();
  do {
    out.push_back(static_cast<char>((n & 0x7f) | (n > 0x7f ? 0x80 : 0)));
    n >>= 7;
  } while (n != 0);
  return out + value;
}

TEST(BulkMessageTest, FieldsMayComeInAnyOrderWithUnknownOnesBetween) {
  const Bytes payload = RandomPayload(300, 9);
  const VoteHeader header = SomeHeader(payload);
  const std::string checksum(reinterpret_cast<const char*>(&header.checksum), 8);
  const std::string inner =
      Field(15, 2, Sized(std::string(payload.begin(), payload.end()))) +  // payload first
      Field(9, 2, Sized("unknown bytes")) + Field(6, 1, checksum) +
      Field(10, 0, std::string("\x96\x01")) + Field(5, 0, std::string(1, 5)) +
      Field(11, 1, "12345678") + Field(4, 0, std::string(1, 2)) + Field(12, 5, "1234") +
      Field(3, 0, std::string("\xf0\xa2\x04")) +
      Field(13, 3, Field(1, 0, "\x01") + Field(13, 4, "")) +  // a group
      Field(2, 0, std::string(1, 3)) + Field(1, 2, Sized(std::string(header.run_id.bytes())));
  const std::string wire = Field(100, 2, Sized("unknown in the envelope")) +
                           Field(1, 2, Sized(inner)) + Field(101, 0, std::string(1, 1));
  v1::WorkerMessage generated;
  ASSERT_TRUE(generated.ParseFromString(wire));
  ExpectSame(generated.ballot_chunk(), header, payload);
  for (const size_t piece : {1, 5, 1000}) {
    const grpc::ByteBuffer buffer = InPieces(wire, piece);
    const auto view = DecodeVote(BulkKind::kBallotChunk, buffer);
    ASSERT_TRUE(view.ok()) << view.status();
    ASSERT_TRUE(view->has_value());
    ExpectEqual((*view)->header, header);
    Bytes out((*view)->payload_bytes);
    ASSERT_TRUE(CopyPayloadChecked(buffer, (*view)->payload_offset, header.checksum, out).ok());
    EXPECT_EQ(out, payload);
  }
}

TEST(BulkMessageTest, EveryTruncationIsRefused) {
  const Bytes payload = RandomPayload(60, 1);
  const VoteHeader header = SomeHeader(payload);
  const std::string wire = Flatten(EncodeVote(BulkKind::kBallotChunk, header, payload, nullptr));
  for (size_t n = 1; n < wire.size(); ++n) {
    const auto view = DecodeVote(BulkKind::kBallotChunk, InPieces(wire.substr(0, n), 9));
    EXPECT_EQ(view.status().code(), absl::StatusCode::kInvalidArgument) << n;
  }
  const std::string state = Flatten(EncodeState(
      BulkKind::kUploadChunk, {.round = Round(1), .first = 512, .count = 15, .checksum = 99},
      payload, nullptr));
  for (size_t n = 1; n < state.size(); ++n) {
    const auto view = DecodeState(BulkKind::kUploadChunk, InPieces(state.substr(0, n), 9));
    EXPECT_EQ(view.status().code(), absl::StatusCode::kInvalidArgument) << n;
  }
}

// Each byte is changed to many values: the reader must agree with the generated parser on what is
// readable, or refuse.
TEST(BulkMessageTest, NoChangedByteMakesTheReaderDisagreeWithTheGeneratedParser) {
  const Bytes payload = RandomPayload(20, 3);
  const VoteHeader header = SomeHeader(payload);
  const std::string wire = Flatten(EncodeVote(BulkKind::kBallotChunk, header, payload, nullptr));
  int accepted = 0, refused = 0;
  for (size_t at = 0; at < wire.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = wire;
      changed[at] = static_cast<char>(value);
      const grpc::ByteBuffer buffer = InPieces(changed, 11);
      const auto view = DecodeVote(BulkKind::kBallotChunk, buffer);
      if (!view.ok() || !view->has_value()) {
        ++refused;
        continue;
      }
      ++accepted;
      v1::WorkerMessage generated;
      ASSERT_TRUE(generated.ParseFromString(changed)) << at << " " << value;
      ASSERT_TRUE(generated.has_ballot_chunk()) << at << " " << value;
      Bytes out((*view)->payload_bytes);
      Copy(buffer, (*view)->payload_offset, &out);
      ExpectSame(generated.ballot_chunk(), (*view)->header, out);
      if (HasFailure()) FAIL() << "byte " << at << " set to " << value;
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_GT(refused, 0);
}

TEST(BulkMessageTest, HugeLengthsAreRefused) {
  const std::string huge("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 10);  // 2^64 - 1
  const std::string run_id(16, 'r');
  const std::string too_long("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
                             10);  // does not fit 64 bits
  for (const std::string& wire : {
           Field(1, 2, huge),
           Field(1, 2, too_long),
           Field(1, 2, Sized(Field(1, 2, Sized(run_id)) + Field(15, 2, huge))),
           Field(1, 2, Sized(Field(1, 2, Sized(run_id)) + Field(15, 2, huge + "x"))),
           Field(1, 2, Sized(Field(1, 2, huge))),
           Field(1, 2, Sized(Field(9, 2, huge))),
           Field(99, 2, huge),
           // The payload claims one byte more than its enclosing message, although the envelope has
           // bytes left.
           Field(1, 2, Sized(Field(1, 2, Sized(run_id)) + Field(15, 2, std::string("\x03zz", 3)))) +
               "zzzz",
       }) {
    EXPECT_EQ(DecodeVote(BulkKind::kBallotChunk, InPieces(wire, 4)).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(BulkMessageTest, TagsAndLengthsOfMoreThanFiveBytesAreRefusedAsGeneratedReadersDo) {
  const std::string run_id = Field(1, 2, Sized(std::string(16, 'r')));
  const std::string long_tag("\x90\x80\x80\x80\x80\x00\x07", 7);      // field 2, then 7
  const std::string long_length("\x7a\x81\x80\x80\x80\x80\x00z", 8);  // field 15, one byte
  for (const std::string& inner : {long_tag, long_length}) {
    const std::string wire = Field(1, 2, Sized(run_id + inner));
    EXPECT_FALSE(v1::WorkerMessage().ParseFromString(wire));
    EXPECT_EQ(DecodeVote(BulkKind::kBallotChunk, InPieces(wire, 4)).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(BulkMessageTest, DeeplyNestedUnknownGroupsAreRefused) {
  std::string inner;
  for (int i = 0; i < 1000; ++i) inner += Field(9, 3, "");
  for (int i = 0; i < 1000; ++i) inner += Field(9, 4, "");
  EXPECT_EQ(
      DecodeVote(BulkKind::kBallotChunk, InPieces(Field(1, 2, Sized(inner)), 100)).status().code(),
      absl::StatusCode::kInvalidArgument);
}

TEST(BulkMessageTest, WrongRunIdLengthIsRefused) {
  for (const size_t bytes : {0, 15, 17}) {
    const std::string wire = Field(1, 2, Sized(Field(1, 2, Sized(std::string(bytes, 'r')))));
    EXPECT_EQ(DecodeVote(BulkKind::kBallotChunk, InPieces(wire, 64)).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(
      DecodeVote(BulkKind::kBallotChunk, InPieces(Field(1, 2, Sized("")), 64)).status().message(),
      "malformed ballot chunk: run_id is missing");
}

TEST(BulkMessageTest, TwoChunksInOneEnvelopeAreRefused) {
  const Bytes payload = {1};
  const std::string one =
      Flatten(EncodeVote(BulkKind::kBallotChunk, SomeHeader(payload), payload, nullptr));
  EXPECT_EQ(DecodeVote(BulkKind::kBallotChunk, InPieces(one + one, 64)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(BulkMessageTest, OtherMessagesAreLeftToTheGeneratedParser) {
  v1::WorkerMessage up;
  up.mutable_scalars()->set_loss(1.5);
  const auto scalars = DecodeVote(BulkKind::kBallotChunk, EncodeMessage(up));
  ASSERT_TRUE(scalars.ok());
  EXPECT_FALSE(scalars->has_value());
  v1::WorkerMessage parsed;
  ASSERT_TRUE(ParseMessage(EncodeMessage(up), &parsed).ok());
  EXPECT_EQ(parsed.scalars().loss(), 1.5);

  up.mutable_join()->set_name("w");
  EXPECT_FALSE(DecodeVote(BulkKind::kBallotChunk, EncodeMessage(up))->has_value());
  v1::UploadStateRequest first;
  first.set_ticket("0123456789abcdef");
  EXPECT_FALSE(DecodeState(BulkKind::kUploadChunk, EncodeMessage(first))->has_value());
  EXPECT_FALSE(DecodeVote(BulkKind::kBallotChunk, grpc::ByteBuffer())->has_value());
}

TEST(BulkMessageTest, StateChunksAgreeWithTheGeneratedCodeBothWays) {
  const Bytes payload = RandomPayload(4096, 5);
  const StateHeader header{.round = Round(12), .first = 1 << 20, .count = 1024, .checksum = 77};
  v1::StateChunk down;
  ASSERT_TRUE(
      down.ParseFromString(Flatten(EncodeState(BulkKind::kStateChunk, header, payload, nullptr))));
  EXPECT_EQ(down.round(), 12u);
  EXPECT_EQ(down.first(), 1u << 20);
  EXPECT_EQ(down.count(), 1024u);
  EXPECT_EQ(down.checksum(), 77u);
  EXPECT_EQ(down.payload(), std::string(payload.begin(), payload.end()));
  v1::UploadStateRequest up;
  ASSERT_TRUE(
      up.ParseFromString(Flatten(EncodeState(BulkKind::kUploadChunk, header, payload, nullptr))));
  EXPECT_EQ(up.chunk().SerializeAsString(), down.SerializeAsString());

  for (const auto& [kind, wire] : {std::pair{BulkKind::kStateChunk, down.SerializeAsString()},
                                   std::pair{BulkKind::kUploadChunk, up.SerializeAsString()}}) {
    const grpc::ByteBuffer buffer = InPieces(wire, 1000);
    const auto view = DecodeState(kind, buffer);
    ASSERT_TRUE(view.ok() && view->has_value());
    EXPECT_EQ((*view)->header.round, header.round);
    EXPECT_EQ((*view)->header.first, header.first);
    EXPECT_EQ((*view)->header.count, header.count);
    EXPECT_EQ((*view)->header.checksum, header.checksum);
    Bytes out((*view)->payload_bytes);
    Copy(buffer, (*view)->payload_offset, &out);
    EXPECT_EQ(out, payload);
  }
}

TEST(BulkMessageTest, ThePlaneOfAStateChunkSurvivesBothWays) {
  const Bytes payload = RandomPayload(64, 6);
  for (const uint32_t plane : {kPlaneReplica, kPlaneX0, 7u, 0xffffffffu}) {
    const StateHeader header{.round = Round(3), .first = 512, .count = 16, .plane = plane};
    v1::StateChunk generated;
    ASSERT_TRUE(generated.ParseFromString(
        Flatten(EncodeState(BulkKind::kStateChunk, header, payload, nullptr))));
    EXPECT_EQ(generated.plane(), plane);
    v1::UploadStateRequest upload;
    *upload.mutable_chunk() = generated;
    const auto view = DecodeState(BulkKind::kUploadChunk, InPieces(upload.SerializeAsString(), 5));
    ASSERT_TRUE(view.ok() && view->has_value()) << view.status();
    EXPECT_EQ((*view)->header.plane, plane);
    EXPECT_EQ((*view)->payload_bytes, payload.size());
  }
}

TEST(BulkMessageTest, NumbersBeyondTheirFieldAreRefused) {
  const std::string beyond("\x80\x80\x80\x80\x10", 5);  // 2^32
  EXPECT_EQ(DecodeState(BulkKind::kStateChunk, InPieces(Field(5, 0, beyond), 3)).status().message(),
            "malformed state chunk: plane exceeds 32 bits");
  const std::string run_id = Field(1, 2, Sized(std::string(16, 'r')));
  for (const uint32_t field : {4u, 5u}) {
    EXPECT_EQ(DecodeVote(BulkKind::kVerdictChunk,
                         InPieces(Field(1, 2, Sized(run_id + Field(field, 0, beyond))), 3))
                  .status()
                  .message(),
              "malformed verdict chunk: attempt or chunk exceeds 32 bits");
  }
}

TEST(BulkMessageTest, TheLongestHeadersAreReadBack) {
  const Bytes payload = RandomPayload(300, 2);
  VoteHeader vote = SomeHeader(payload);
  vote.epoch = Epoch(~uint64_t{0});
  vote.round = Round(~uint64_t{0});
  vote.attempt = Attempt(0xffffffff);
  vote.chunk = ChunkIndex(0xffffffff);
  const auto read = DecodeVote(BulkKind::kBallotChunk,
                               EncodeVote(BulkKind::kBallotChunk, vote, payload, nullptr));
  ASSERT_TRUE(read.ok() && read->has_value()) << read.status();
  ExpectEqual((*read)->header, vote);
  const StateHeader state{.round = Round(~uint64_t{0}),
                          .first = ~uint64_t{0},
                          .count = ~uint64_t{0},
                          .checksum = ~uint64_t{0},
                          .plane = 0xffffffff};
  const auto got = DecodeState(BulkKind::kUploadChunk,
                               EncodeState(BulkKind::kUploadChunk, state, payload, nullptr));
  ASSERT_TRUE(got.ok() && got->has_value()) << got.status();
  EXPECT_EQ((*got)->header.first, state.first);
  EXPECT_EQ((*got)->header.count, state.count);
  EXPECT_EQ((*got)->header.plane, state.plane);
}

TEST(BulkMessageDeathTest, AKindOfTheOtherFamilyIsABug) {
  const Bytes payload = {1};
  EXPECT_DEATH(EncodeVote(BulkKind::kUploadChunk, SomeHeader(payload), payload, nullptr), "IsVote");
  EXPECT_DEATH(EncodeState(BulkKind::kBallotChunk, {}, payload, nullptr), "IsVote");
}

TEST(BulkMessageTest, ThePayloadIsReferencedAndItsOwnerReleasedWithTheLastBuffer) {
  auto payload = std::make_shared<Bytes>(RandomPayload(1 << 16, 8));
  std::weak_ptr<Bytes> watch = payload;
  const uint8_t* const bytes = payload->data();
  grpc::ByteBuffer copy;
  {
    const grpc::ByteBuffer buffer =
        EncodeVote(BulkKind::kVerdictChunk, SomeHeader(*payload), *payload, payload);
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(buffer.Dump(&slices).ok());
    ASSERT_EQ(slices.size(), 2u);
    EXPECT_EQ(slices[1].begin(), bytes);
    copy = buffer;
  }
  payload.reset();
  EXPECT_FALSE(watch.expired());
  copy.Clear();
  EXPECT_TRUE(watch.expired());
}

TEST(BulkMessageTest, AFlippedPayloadBitFailsTheChecksum) {
  for (const size_t bytes : {1, 16384, 40000}) {
    const Bytes payload = RandomPayload(bytes, 11);
    const VoteHeader header = SomeHeader(payload);
    std::string wire = Flatten(EncodeVote(BulkKind::kBallotChunk, header, payload, nullptr));
    for (const size_t from_end : {size_t{1}, bytes / 2 + 1, bytes}) {
      std::string flipped = wire;
      flipped[flipped.size() - from_end] =
          static_cast<char>(flipped[flipped.size() - from_end] ^ 0x10);
      const grpc::ByteBuffer buffer = InPieces(flipped, 8192);
      const auto view = DecodeVote(BulkKind::kBallotChunk, buffer);
      ASSERT_TRUE(view.ok() && view->has_value());
      Bytes out(bytes);
      EXPECT_EQ(
          CopyPayloadChecked(buffer, (*view)->payload_offset, (*view)->header.checksum, out).code(),
          absl::StatusCode::kDataLoss);
    }
  }
}

TEST(BulkMessageTest, CopyingBeyondTheMessageIsRefused) {
  const grpc::ByteBuffer buffer = InPieces("0123456789", 3);
  Bytes out(5);
  EXPECT_TRUE(CopyPayloadChecked(buffer, 5, Xxh3("56789", 5), out).ok());
  EXPECT_EQ(out[4], '9');
  EXPECT_EQ(CopyPayloadChecked(buffer, 1000, 0, out).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CopyPayloadChecked(buffer, 6, 0, out).code(), absl::StatusCode::kInvalidArgument);
}

TEST(MessageTest, GarbageIsRefusedWithTheMessagesName) {
  v1::WorkerMessage message;
  const absl::Status status = ParseMessage(InPieces("\x0a\xff\xff", 2), &message);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "message is not a valid signvote.v1.WorkerMessage");
  EXPECT_TRUE(ParseMessage(grpc::ByteBuffer(), &message).ok());
}

}  // namespace
}  // namespace signvote::wire
