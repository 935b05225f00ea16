#include "server/replica/master_replica.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "common/apply.h"
#include "common/bits.h"
#include "common/checksum.h"
#include "common/rng.h"
#include "common/status.h"
#include "tests/unit/server/commit/records.h"

namespace signvote {
namespace {

using testing::Bytes;
using testing::Make;
using testing::StepFields;

constexpr uint64_t kPiece = MasterReplica::kPieceCoordinates;

Layout TwoTensors(uint64_t first, uint64_t second) {
  return *Layout::Make({{.name = "a", .shape = {first}, .weight_decay = 0.01f},
                        {.name = "b", .shape = {second}, .step_scale = 0.5f}});
}

// A replica of a little more than two pieces beside plain vectors that do the same.
class MasterReplicaTest : public ::testing::Test {
 protected:
  explicit MasterReplicaTest(bool needs_x0 = true) : needs_x0_(needs_x0) {
    auto made = MasterReplica::Create(TwoTensors(300'000, kD - 300'000),
                                      {.start = Round(5), .needs_x0 = needs_x0});
    SIGNVOTE_CHECK(made.ok());
    replica_ = *std::move(made);
    for (uint64_t i = 0; i < kD; ++i)
      x_[i] = replica_->x()[i] = static_cast<float>(i % 1000) * 0.001f;
    x0_ = x_;
  }

  CommitRecord Fields(CommitKind kind) {
    CommitRecord fields;
    if (kind == CommitKind::kStep) {
      const auto bits = Bytes(plan_.TotalBytes());
      for (size_t i = 0; i < plan_.TotalBytes(); ++i)
        bits.get()[i] = static_cast<uint8_t>(rng_.Next());
      fields = StepFields(next_, plan_, bits);
      fields.gamma = 0.01f;
    }
    fields.round = Round(next_);
    fields.kind = kind;
    return fields;
  }
  // Applies it to the replica and to the vectors.
  uint64_t Apply(CommitRecord fields) {
    ++next_;
    const auto record = Make(std::move(fields), plan_, 2);
    if (record->kind == CommitKind::kRewind) x_ = x0_;
    for (const PayloadPart& part : record->payload) {
      const uint64_t first = part.first_coordinate;
      ApplyStep(replica_->layout(),
                {.gamma = record->gamma,
                 .rho = record->rho,
                 .decay_step = record->decay_step,
                 .scales = record->scales},
                first, part.coordinates, part.bytes.get(), first, x0_.data() + first,
                x_.data() + first);
    }
    return replica_->Apply(*record);
  }
  void ExpectSame() {
    EXPECT_EQ(std::memcmp(x_.data(), replica_->x().data(), kD * sizeof(float)), 0);
    std::vector<float> piece(kPiece);
    for (uint64_t p = 0; p < replica_->pieces(); ++p) {
      const auto round = replica_->CopyPiece(Plane::kX, p, piece.data());
      ASSERT_TRUE(round.ok());
      EXPECT_EQ(*round, Round(next_));
      EXPECT_EQ(
          std::memcmp(piece.data(), x_.data() + p * kPiece, replica_->Count(p) * sizeof(float)), 0);
      if (!needs_x0_) continue;
      const auto x0_round = replica_->CopyPiece(Plane::kX0, p, piece.data());
      ASSERT_TRUE(x0_round.ok());
      EXPECT_EQ(*x0_round, Round(next_));
      EXPECT_EQ(
          std::memcmp(piece.data(), x0_.data() + p * kPiece, replica_->Count(p) * sizeof(float)),
          0);
    }
  }

  static constexpr uint64_t kD = 2 * kPiece + 777;
  const bool needs_x0_;
  const PayloadPlan plan_{ChunkPlan(kD, uint64_t{1} << 17)};
  std::unique_ptr<MasterReplica> replica_;
  std::vector<float> x_ = std::vector<float>(kD), x0_;
  Rng rng_{3, 0};
  uint64_t next_ = 5;
};

class PlainReplicaTest : public MasterReplicaTest {
 protected:
  PlainReplicaTest() : MasterReplicaTest(false) {}
};

TEST_F(PlainReplicaTest, AppliesEachPieceAsOneApplyOverTheWholeModelWould) {
  ASSERT_EQ(replica_->pieces(), 3u);
  EXPECT_FALSE(replica_->has_x0());
  for (int r = 0; r < 3; ++r) {
    CommitRecord fields = Fields(CommitKind::kStep);
    fields.digest_due = r == 2;
    const uint64_t digest = Apply(std::move(fields));
    EXPECT_EQ(digest, r == 2 ? ReplicaDigest(x_.data(), 0, kD) : 0);
    ExpectSame();
  }
  EXPECT_EQ(replica_->Digest(), ReplicaDigest(x_.data(), 0, kD));
}

TEST(MasterReplicaThreadsTest, WhoeverReadsFromTheFirstPieceToTheLastSeesNoneOlderThanOneBefore) {
  constexpr uint64_t kPieces = 16, kCommits = 40;
  constexpr uint64_t kMany = kPieces * kPiece;
  auto made = MasterReplica::Create(*Layout::Make({{.name = "a", .shape = {kMany}}}), {});
  ASSERT_TRUE(made.ok());
  MasterReplica& replica = **made;
  const PayloadPlan plan{ChunkPlan(kMany, uint64_t{1} << 17)};
  const auto bits = Bytes(plan.TotalBytes());
  std::jthread applier([&] {
    for (uint64_t r = 0; r < kCommits; ++r) {
      CommitRecord fields = StepFields(r, plan, bits);
      fields.gamma = 0.01f;
      fields.digest_due = true;  // slower than who reads, whatever the machine
      (void)replica.Apply(*Make(fields, plan));
    }
  });
  std::vector<float> out(kPiece);
  for (Round first; first < Round(kCommits);) {
    Round seen;
    for (uint64_t p = 0; p < kPieces; ++p) {
      const auto round = replica.CopyPiece(Plane::kX, p, out.data());
      ASSERT_TRUE(round.ok());
      ASSERT_GE(*round, seen) << "piece " << p;
      seen = *round;
      if (p == 0) first = *round;
    }
  }
}

TEST_F(PlainReplicaTest, APayloadInPartsIsTheSameAsInOnePiece) {
  CommitRecord fields = Fields(CommitKind::kStep);
  const std::shared_ptr<const uint8_t> whole = fields.payload[0].bytes;
  // Cut in the middle of a piece, and at its end.
  fields.payload.clear();
  for (const auto& [first, chunks] : {std::pair<uint32_t, uint32_t>{0, 1}, {1, 1}, {2, 3}}) {
    const auto copy = Bytes(plan_.TotalBytes());
    const size_t offset = plan_.Offset(ChunkIndex(first));
    std::memcpy(copy.get(), whole.get() + offset, plan_.TotalBytes() - offset);
    fields.payload.push_back(MakePart(plan_, ChunkIndex(first), chunks, copy));
  }
  Apply(std::move(fields));
  ExpectSame();
}

TEST_F(MasterReplicaTest, RescalesAboutTheStartingPoint) {
  Apply(Fields(CommitKind::kStep));
  for (const float rho : {0.5f, 1.25f}) {
    CommitRecord fields = Fields(CommitKind::kStep);
    fields.rho = rho;
    fields.decay_step = 0.3f;
    fields.scales = {0.5f, 2.0f};
    Apply(std::move(fields));
    ExpectSame();
  }
}

TEST_F(MasterReplicaTest, AStepOfCountsMovesEachChunkByTheMeanOfItsBallots) {
  const ChunkPlan& chunks = plan_.chunk_plan();
  const PayloadPlan plan = *PayloadPlan::Make(
      chunks, {{.first = ChunkIndex(0), .chunks = chunks.chunks(), .kind = PayloadKind::kCounts}},
      15);
  const auto bytes = Bytes(plan.TotalBytes());
  for (size_t i = 0; i < plan.TotalBytes(); ++i) bytes.get()[i] = static_cast<uint8_t>(rng_.Next());
  CommitRecord fields = StepFields(next_++, plan, bytes);
  fields.gamma = 0.01f;
  fields.rho = 0.5f;
  fields.scales = {0.5f, 2.0f};
  for (uint32_t k = 0; k < chunks.chunks(); ++k) fields.chunks[k].counted = 1 + k % 15;
  const auto record = Make(std::move(fields), plan, 2);
  for (uint32_t k = 0; k < chunks.chunks(); ++k) {
    const uint64_t first = chunks.First(ChunkIndex(k));
    ApplyCounts(replica_->layout(), {.gamma = 0.01f, .rho = 0.5f, .scales = record->scales}, first,
                chunks.Count(ChunkIndex(k)),
                {.planes = bytes.get() + plan.Offset(ChunkIndex(k)),
                 .plane_bytes = chunks.Bytes(ChunkIndex(k)),
                 .ballots = 1 + k % 15,
                 .first = first},
                x0_.data() + first, x_.data() + first);
  }
  replica_->Apply(*record);
  ExpectSame();
  EXPECT_NE(x_, x0_);
}

TEST_F(MasterReplicaTest, ARewindBringsTheStartingPointBack) {
  Apply(Fields(CommitKind::kRewind));  // nothing has moved yet
  ExpectSame();
  Apply(Fields(CommitKind::kStep));
  Apply(Fields(CommitKind::kStep));
  EXPECT_NE(x_, x0_);
  ExpectSame();
  CommitRecord rewind = Fields(CommitKind::kRewind);
  rewind.digest_due = true;
  EXPECT_EQ(Apply(std::move(rewind)), ReplicaDigest(x0_.data(), 0, kD));
  EXPECT_EQ(x_, x0_);
  ExpectSame();
  Apply(Fields(CommitKind::kStep));
  ExpectSame();
}

TEST_F(MasterReplicaTest, ACommitOfKindNoneTakesARoundAndMovesNothing) {
  Apply(Fields(CommitKind::kStep));
  const std::vector<float> before = x_;
  CommitRecord none = Fields(CommitKind::kNone);
  none.digest_due = true;
  EXPECT_EQ(Apply(std::move(none)), ReplicaDigest(before.data(), 0, kD));
  EXPECT_EQ(x_, before);
  ExpectSame();
}

TEST_F(MasterReplicaTest, ARescalingFirstStepStartsFromTheStartingPointToo) {
  CommitRecord fields = Fields(CommitKind::kStep);
  fields.rho = 0.5f;
  Apply(std::move(fields));
  ExpectSame();
}

TEST_F(MasterReplicaTest, AKeptStartingPointIsPutBackByItsOwner) {
  for (uint64_t i = 0; i < kD; ++i) x0_[i] = -x_[i];
  const std::span<float> x0 = replica_->RestoreX0();
  std::copy(x0_.begin(), x0_.end(), x0.begin());
  ExpectSame();
  Apply(Fields(CommitKind::kStep));
  ExpectSame();
  Apply(Fields(CommitKind::kRewind));
  ExpectSame();
}

TEST_F(MasterReplicaTest, ADroppedStartingPointIsGoneAndItsMemoryToo) {
  Apply(Fields(CommitKind::kStep));
  std::vector<float> piece(kPiece);
  EXPECT_TRUE(replica_->has_x0());
  replica_->DropX0();
  EXPECT_FALSE(replica_->has_x0());
  EXPECT_EQ(replica_->CopyPiece(Plane::kX0, 1, piece.data()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  replica_->DropX0();  // again: nothing
  Apply(Fields(CommitKind::kStep));
  EXPECT_EQ(std::memcmp(x_.data(), replica_->x().data(), kD * sizeof(float)), 0);
}

TEST_F(PlainReplicaTest, WithoutAStartingPointNobodyGetsACopyOfIt) {
  std::vector<float> piece(kPiece);
  const auto copy = replica_->CopyPiece(Plane::kX0, 0, piece.data());
  EXPECT_EQ(copy.status().code(), absl::StatusCode::kFailedPrecondition);
}

using MasterReplicaDeathTest = MasterReplicaTest;
using PlainReplicaDeathTest = PlainReplicaTest;

TEST_F(MasterReplicaDeathTest, CommitsOutOfOrderAndWithoutAStartingPointAreBugs) {
  CommitRecord late = Fields(CommitKind::kNone);
  late.round = Round(6);
  EXPECT_DEATH(replica_->Apply(late), "check failed");
  late.round = Round(4);
  EXPECT_DEATH(replica_->Apply(late), "check failed");
  replica_->DropX0();
  EXPECT_DEATH(replica_->Apply(Fields(CommitKind::kRewind)), "check failed");
  EXPECT_DEATH(replica_->RestoreX0(), "check failed");
}

TEST_F(PlainReplicaDeathTest, ARescalingWithoutAStartingPointIsABug) {
  CommitRecord fields = Fields(CommitKind::kStep);
  fields.rho = 0.5f;
  EXPECT_DEATH(replica_->Apply(fields), "check failed");
  EXPECT_DEATH(replica_->RestoreX0(), "check failed");
}

// Pages of [data, data + bytes) that are in memory; `data` begins a page.
size_t PagesThere(const void* data, size_t bytes) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> there((bytes + page - 1) / page);
  SIGNVOTE_CHECK(::mincore(const_cast<void*>(data), bytes, there.data()) == 0);
  return static_cast<size_t>(
      std::count_if(there.begin(), there.end(), [](unsigned char c) { return (c & 1) != 0; }));
}

TEST(MasterReplicaMemoryTest, CreatingOneTouchesNoPage) {
  const uint64_t d = uint64_t{1} << 26;  // 256 MiB a plane
  auto made = MasterReplica::Create(TwoTensors(d - 1, 1), {.needs_x0 = true});
  ASSERT_TRUE(made.ok()) << Describe(made.status());
  MasterReplica& replica = **made;
  EXPECT_EQ(PagesThere(replica.x().data(), d * sizeof(float)), 0u);
  // One written value makes one page, or one huge page.
  replica.x()[0] = 1.0f;
  EXPECT_LE(PagesThere(replica.x().data(), d * sizeof(float)), 512u);
  EXPECT_EQ(std::as_const(replica).x()[d - 1], 0.0f);
}

TEST(MasterReplicaMemoryTest, DroppingTheStartingPointGivesItsPagesBack) {
  const uint64_t d = 8 * kPiece;
  auto made = MasterReplica::Create(TwoTensors(d - 1, 1), {.needs_x0 = true});
  ASSERT_TRUE(made.ok());
  const std::span<float> x0 = (*made)->RestoreX0();
  std::fill(x0.begin(), x0.end(), 1.0f);
  EXPECT_GT(PagesThere(x0.data(), d * sizeof(float)), 0u);
  (*made)->DropX0();
  EXPECT_EQ(PagesThere(x0.data(), d * sizeof(float)), 0u);
}

TEST(MasterReplicaMemoryTest, AModelFarBeyondTheMachinesMemoryIsRefusedWithItsSize) {
  const uint64_t d = uint64_t{1} << 40;
  EXPECT_EQ(MasterReplica::BytesFor(d, false), 4 * d);
  EXPECT_EQ(MasterReplica::BytesFor(d, true), 8 * d);
  const auto made = MasterReplica::Create(TwoTensors(d - 1, 1), {.needs_x0 = true});
  if (made.ok()) GTEST_SKIP() << "this kernel promises any amount of memory";
  EXPECT_EQ(made.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(absl::StrContains(made.status().message(), std::to_string(8 * d)));
}

}  // namespace
}  // namespace signvote
