#include "server/commit/commit_record.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/match.h"
#include "common/status.h"
#include "tests/unit/server/commit/records.h"

namespace signvote {
namespace {

using testing::Bytes;
using testing::StepFields;

constexpr size_t kTensors = 2;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class CommitRecordTest : public ::testing::Test {
 protected:
  CommitRecord Step() const { return StepFields(7, plan_, payload_); }
  absl::StatusCode Code(const CommitRecord& fields) const {
    return MakeCommitRecord(fields, plan_, kTensors).status().code();
  }
  absl::StatusCode CodeAfter(const std::function<void(CommitRecord*)>& change) const {
    CommitRecord fields = Step();
    change(&fields);
    return Code(fields);
  }

  const PayloadPlan plan_{ChunkPlan(3000, 1024)};
  const std::shared_ptr<uint8_t> payload_ = Bytes(375, 0x5A);
};

TEST_F(CommitRecordTest, AStepGetsTheHashOfItsChunks) {
  const CommitRecord fields = Step();
  const auto record = MakeCommitRecord(fields, plan_, kTensors);
  ASSERT_TRUE(record.ok()) << Describe(record.status());
  EXPECT_EQ((*record)->payload_hash, PayloadHash(fields.chunks));
  EXPECT_EQ((*record)->payload_bytes, 375u);
  EXPECT_EQ((*record)->round, Round(7));
}

TEST_F(CommitRecordTest, EachChunkIsFoundInItsPart) {
  CommitRecord fields = Step();
  const std::shared_ptr<uint8_t> tail = Bytes(375 - 128, 0x33);
  fields.payload = {MakePart(plan_, ChunkIndex(0), 1, payload_),
                    MakePart(plan_, ChunkIndex(1), 2, tail)};
  const auto made = MakeCommitRecord(fields, plan_, kTensors);
  ASSERT_TRUE(made.ok()) << Describe(made.status());
  const CommitRecord& record = **made;
  EXPECT_EQ(record.payload_bytes, 375u);
  EXPECT_EQ(record.Chunk(ChunkIndex(0)).data(), payload_.get());
  EXPECT_EQ(record.Chunk(ChunkIndex(0)).size(), 128u);
  EXPECT_EQ(record.Chunk(ChunkIndex(1)).data(), tail.get());
  EXPECT_EQ(record.Chunk(ChunkIndex(2)).data(), tail.get() + 128);
  EXPECT_EQ(record.Chunk(ChunkIndex(2)).size(), 119u);
  EXPECT_EQ(record.ChunkOwner(ChunkIndex(0)), payload_);
  EXPECT_EQ(record.ChunkOwner(ChunkIndex(2)), tail);
}

TEST_F(CommitRecordTest, PartsKnowTheirCoordinates) {
  const PayloadPart part = MakePart(plan_, ChunkIndex(1), 2, nullptr);
  EXPECT_EQ(part.first_coordinate, 1024u);
  EXPECT_EQ(part.coordinates, 3000u - 1024);
  EXPECT_EQ(part.kind, PayloadKind::kSigns);
  const std::vector<PayloadPart> whole = WholePayload(plan_, payload_);
  ASSERT_EQ(whole.size(), 1u);
  EXPECT_EQ(whole[0].chunks, 3u);
  EXPECT_EQ(whole[0].coordinates, 3000u);
  EXPECT_EQ(whole[0].bytes.get(), payload_.get());
}

TEST_F(CommitRecordTest, AChunkThatLiesElsewhereHasNoBytesHere) {
  CommitRecord fields = Step();
  fields.payload = {MakePart(plan_, ChunkIndex(0), 3, nullptr)};
  EXPECT_TRUE(fields.Chunk(ChunkIndex(1)).empty());
  const auto record = MakeCommitRecord(fields, plan_, kTensors);
  EXPECT_EQ(record.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_TRUE(absl::StrContains(record.status().message(), "elsewhere"));
}

TEST_F(CommitRecordTest, ARangeOfValuesLiesBehindTheSigns) {
  for (const PayloadKind kind : {PayloadKind::kFp32, PayloadKind::kBf16}) {
    const auto plan = PayloadPlan::Make(plan_.chunk_plan(),
                                        {{.first = ChunkIndex(0), .chunks = 2},
                                         {.first = ChunkIndex(2), .chunks = 1, .kind = kind}},
                                        3);
    ASSERT_TRUE(plan.ok());
    const auto bytes = Bytes(plan->TotalBytes());
    const CommitRecord fields = StepFields(7, *plan, bytes);
    ASSERT_EQ(fields.payload.size(), 2u);
    EXPECT_EQ(fields.payload[1].bytes.get(), bytes.get() + 256);
    const auto record = MakeCommitRecord(fields, *plan, kTensors);
    ASSERT_TRUE(record.ok()) << ToStd(record.status().message());
    const size_t value = kind == PayloadKind::kFp32 ? 4 : 2;
    EXPECT_EQ((*record)->Chunk(ChunkIndex(2)).size(), value * (3000 - 2048));
    EXPECT_EQ((*record)->payload_bytes, 256 + value * (3000 - 2048));
  }
}

TEST_F(CommitRecordTest, ChunksOfCountsHaveTheBytesOfTheBallotsCounted) {
  const auto plan = PayloadPlan::Make(
      plan_.chunk_plan(), {{.first = ChunkIndex(0), .chunks = 3, .kind = PayloadKind::kCounts}}, 4);
  ASSERT_TRUE(plan.ok());
  const auto bytes = Bytes(plan->TotalBytes());
  CommitRecord fields = StepFields(7, *plan, bytes);
  fields.chunks[0].counted = 1;
  fields.chunks[1].counted = 3;
  fields.chunks[2].counted = 4;
  const auto record = MakeCommitRecord(fields, *plan, kTensors);
  ASSERT_TRUE(record.ok()) << Describe(record.status());
  EXPECT_EQ((*record)->Chunk(ChunkIndex(0)).size(), 128u);
  EXPECT_EQ((*record)->Chunk(ChunkIndex(1)).data(), bytes.get() + 3 * 128)
      << "room for three planes";
  EXPECT_EQ((*record)->Chunk(ChunkIndex(1)).size(), 2 * 128u);
  EXPECT_EQ((*record)->Chunk(ChunkIndex(2)).size(), 3 * 119u);
  EXPECT_EQ((*record)->payload_bytes, 3 * 375u);
  for (const uint32_t counted : {0u, 5u}) {
    fields.chunks[1].counted = counted;
    EXPECT_EQ(MakeCommitRecord(fields, *plan, kTensors).status().code(),
              absl::StatusCode::kInvalidArgument)
        << counted;
  }
}

TEST_F(CommitRecordTest, AStepWithoutItsWholePayloadIsRefused) {
  const auto kBad = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(CodeAfter([](CommitRecord* r) { r->chunks.pop_back(); }), kBad);
  EXPECT_EQ(CodeAfter([](CommitRecord* r) { r->chunks.push_back({}); }), kBad);
  EXPECT_EQ(CodeAfter([](CommitRecord* r) { r->payload.clear(); }), kBad);
  EXPECT_EQ(CodeAfter([&](CommitRecord* r) {
              r->payload = {MakePart(plan_, ChunkIndex(0), 2, payload_)};
            }),
            kBad);
  EXPECT_EQ(CodeAfter([&](CommitRecord* r) {
              r->payload = {MakePart(plan_, ChunkIndex(1), 2, payload_)};
            }),
            kBad);
  EXPECT_EQ(CodeAfter([&](CommitRecord* r) {
              r->payload.push_back(MakePart(plan_, ChunkIndex(2), 1, payload_));
            }),
            kBad);
  EXPECT_EQ(CodeAfter([](CommitRecord* r) { r->payload[0].chunks = 0; }), kBad);
  EXPECT_EQ(CodeAfter([](CommitRecord* r) { r->payload[0].chunks = 4; }), kBad);
  EXPECT_EQ(CodeAfter([](CommitRecord* r) { ++r->payload[0].first_coordinate; }), kBad);
  EXPECT_EQ(CodeAfter([](CommitRecord* r) { --r->payload[0].coordinates; }), kBad);
  EXPECT_EQ(CodeAfter([](CommitRecord* r) { r->payload[0].kind = PayloadKind::kBf16; }), kBad);
}

TEST_F(CommitRecordTest, NumbersOutOfTheirRangeAreRefused) {
  const auto kBad = absl::StatusCode::kInvalidArgument;
  for (const float bad : {-1e-3f, kNan, kInfinity}) {
    EXPECT_EQ(CodeAfter([&](CommitRecord* r) { r->gamma = bad; }), kBad) << bad;
    EXPECT_EQ(CodeAfter([&](CommitRecord* r) { r->rho = bad; }), kBad) << bad;
    EXPECT_EQ(CodeAfter([&](CommitRecord* r) { r->decay_step = bad; }), kBad) << bad;
    EXPECT_EQ(CodeAfter([&](CommitRecord* r) { r->scales = {1.0f, bad}; }), kBad) << bad;
  }
  EXPECT_EQ(CodeAfter([](CommitRecord* r) { r->scales = {1.0f}; }), kBad);
  EXPECT_EQ(CodeAfter([](CommitRecord* r) {
              r->gamma = 0;
              r->rho = 0;
              r->decay_step = 0;
              r->scales = {0.0f, 2.0f};
            }),
            absl::StatusCode::kOk);
}

TEST_F(CommitRecordTest, OnlyAStepHasAPayload) {
  for (const CommitKind kind : {CommitKind::kNone, CommitKind::kRewind}) {
    CommitRecord fields;
    fields.round = Round(3);
    fields.kind = kind;
    fields.gamma = 0.5f;
    fields.reason = "no ballot";
    const auto record = MakeCommitRecord(fields, plan_, kTensors);
    ASSERT_TRUE(record.ok()) << Describe(record.status());
    EXPECT_EQ((*record)->payload_hash, 0u);
    EXPECT_EQ((*record)->payload_bytes, 0u);
    const auto kBad = absl::StatusCode::kInvalidArgument;
    CommitRecord wrong = fields;
    wrong.chunks = Step().chunks;
    EXPECT_EQ(Code(wrong), kBad);
    wrong = fields;
    wrong.payload = Step().payload;
    EXPECT_EQ(Code(wrong), kBad);
    wrong = fields;
    wrong.rho = 0.9f;
    EXPECT_EQ(Code(wrong), kBad);
    wrong = fields;
    wrong.decay_step = 0.1f;
    EXPECT_EQ(Code(wrong), kBad);
    wrong = fields;
    wrong.scales = {1.0f, 1.0f};
    EXPECT_EQ(Code(wrong), kBad);
  }
}

TEST_F(CommitRecordTest, AnErrorNamesRoundAndKind) {
  CommitRecord fields = Step();
  fields.gamma = kNan;
  const absl::Status status = MakeCommitRecord(fields, plan_, kTensors).status();
  EXPECT_TRUE(absl::StrContains(status.message(), "round 7 (step)")) << Describe(status);
}

using CommitRecordDeathTest = CommitRecordTest;

TEST_F(CommitRecordDeathTest, AskingForAChunkThatIsNotThereIsABug) {
  const CommitRecord fields = Step();
  EXPECT_DEATH((void)fields.ChunkOwner(ChunkIndex(3)), "check failed");
  EXPECT_DEATH((void)MakePart(plan_, ChunkIndex(2), 2, payload_), "check failed");
}

}  // namespace
}  // namespace signvote
