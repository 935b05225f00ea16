#include "common/payload_plan.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "common/checksum.h"
#include "common/status.h"

namespace signvote {
namespace {

// 3 chunks of 1024, 1024 and 952 coordinates.
const ChunkPlan kCut(3000, 1024);

PayloadRange Range(uint32_t first, uint32_t chunks, PayloadKind kind) {
  return {.first = ChunkIndex(first), .chunks = chunks, .kind = kind};
}

TEST(CountPlanesTest, IsTheNumberOfBitsThatTheLargestCountNeeds) {
  EXPECT_EQ(CountPlanes(0), 0u);
  EXPECT_EQ(CountPlanes(1), 1u);
  EXPECT_EQ(CountPlanes(2), 2u);
  EXPECT_EQ(CountPlanes(3), 2u);
  EXPECT_EQ(CountPlanes(4), 3u);
  EXPECT_EQ(CountPlanes(1023), 10u);
  EXPECT_EQ(CountPlanes(1024), 11u);
  EXPECT_EQ(CountPlanes(UINT32_MAX), 32u);
}

TEST(PayloadBytesTest, FollowsTheKind) {
  for (const uint64_t c : {uint64_t{1}, uint64_t{8}, uint64_t{9}, uint64_t{952}}) {
    EXPECT_EQ(PayloadBytes(PayloadKind::kSigns, c, 5), (c + 7) / 8);
    EXPECT_EQ(PayloadBytes(PayloadKind::kCounts, c, 5), 3 * ((c + 7) / 8));
    EXPECT_EQ(PayloadBytes(PayloadKind::kCounts, c, 0), 0u);
    EXPECT_EQ(PayloadBytes(PayloadKind::kFp32, c, 5), 4 * c);
    EXPECT_EQ(PayloadBytes(PayloadKind::kBf16, c, 5), 2 * c);
  }
  // Beyond 32 bits.
  EXPECT_EQ(PayloadBytes(PayloadKind::kFp32, uint64_t{1} << 40, 0), uint64_t{1} << 42);
}

TEST(PayloadPlanTest, SignsLieWhereTheCutOfTheModelPutsThem) {
  const PayloadPlan plan(kCut);
  EXPECT_EQ(plan.chunks(), 3u);
  EXPECT_EQ(plan.TotalBytes(), kCut.TotalBytes());
  for (uint32_t i = 0; i < 3; ++i) {
    const ChunkIndex k(i);
    EXPECT_EQ(plan.kind(k), PayloadKind::kSigns);
    EXPECT_EQ(plan.Offset(k), kCut.ByteOffset(k));
    EXPECT_EQ(plan.Room(k), kCut.Bytes(k));
    EXPECT_EQ(plan.Bytes(k, 7), kCut.Bytes(k));
  }
}

TEST(PayloadPlanTest, EveryKindHasItsRoomOneAfterTheOther) {
  const auto plan =
      PayloadPlan::Make(kCut,
                        {Range(0, 1, PayloadKind::kCounts), Range(1, 1, PayloadKind::kBf16),
                         Range(2, 1, PayloadKind::kFp32)},
                        6);
  ASSERT_TRUE(plan.ok()) << Describe(plan.status());
  EXPECT_EQ(plan->kind(ChunkIndex(0)), PayloadKind::kCounts);
  EXPECT_EQ(plan->kind(ChunkIndex(1)), PayloadKind::kBf16);
  EXPECT_EQ(plan->kind(ChunkIndex(2)), PayloadKind::kFp32);
  // Counts have room for 6 ballots, and take what those counted need.
  EXPECT_EQ(plan->Room(ChunkIndex(0)), 3 * 128u);
  EXPECT_EQ(plan->Bytes(ChunkIndex(0), 6), 3 * 128u);
  EXPECT_EQ(plan->Bytes(ChunkIndex(0), 1), 128u);
  EXPECT_EQ(plan->Offset(ChunkIndex(0)), 0u);
  EXPECT_EQ(plan->Offset(ChunkIndex(1)), 384u);
  EXPECT_EQ(plan->Room(ChunkIndex(1)), 2048u);
  EXPECT_EQ(plan->Offset(ChunkIndex(2)), 384u + 2048);
  EXPECT_EQ(plan->Room(ChunkIndex(2)), 4u * 952);
  EXPECT_EQ(plan->TotalBytes(), 384u + 2048 + 3808);
  EXPECT_EQ(plan->ranges().size(), 3u);
}

TEST(PayloadPlanTest, ARangeOfSeveralChunksEndsWithTheModel) {
  const auto plan = PayloadPlan::Make(
      kCut, {Range(0, 1, PayloadKind::kSigns), Range(1, 2, PayloadKind::kFp32)}, 3);
  ASSERT_TRUE(plan.ok()) << Describe(plan.status());
  EXPECT_EQ(plan->Offset(ChunkIndex(1)), 128u);
  EXPECT_EQ(plan->Offset(ChunkIndex(2)), 128u + 4096);
  EXPECT_EQ(plan->Room(ChunkIndex(2)), 4u * 952);
  EXPECT_EQ(plan->TotalBytes(), 128u + 4096 + 3808);
}

TEST(PayloadPlanTest, EveryOffsetIsAWholeLine) {
  const auto plan =
      PayloadPlan::Make(ChunkPlan(512 * 7 + 13, 512),
                        {Range(0, 2, PayloadKind::kSigns), Range(2, 2, PayloadKind::kCounts),
                         Range(4, 2, PayloadKind::kBf16), Range(6, 2, PayloadKind::kFp32)},
                        1000);
  ASSERT_TRUE(plan.ok()) << Describe(plan.status());
  for (uint32_t k = 0; k < 8; ++k) EXPECT_EQ(plan->Offset(ChunkIndex(k)) % 64, 0u) << k;
}

TEST(PayloadPlanTest, ALargeModelsSizesDoNotOverflow) {
  const uint64_t d = uint64_t{1} << 40;
  const ChunkPlan cut(d, uint64_t{1} << 21);
  const auto plan = PayloadPlan::Make(cut, {Range(0, cut.chunks(), PayloadKind::kFp32)}, 1);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->TotalBytes(), 4 * d);
  EXPECT_EQ(plan->Offset(ChunkIndex(cut.chunks() - 1)), 4 * (d - (uint64_t{1} << 21)));
}

TEST(PayloadPlanTest, RangesThatDoNotCoverAllChunksInOrderAreRefused) {
  const auto kS = PayloadKind::kSigns;
  const std::vector<std::vector<PayloadRange>> wrong = {
      {},
      {Range(0, 2, kS)},
      {Range(1, 2, kS)},
      {Range(0, 4, kS)},
      {Range(0, 1, kS), Range(2, 1, kS)},
      {Range(0, 2, kS), Range(1, 2, kS)},
      {Range(0, 0, kS), Range(0, 3, kS)},
      {Range(0, 3, kS), Range(3, 1, kS)},
      {Range(0, 3, kS), Range(3, 0, kS)},
      {Range(0, 3, kS), Range(0, 3, kS)},
  };
  for (const auto& ranges : wrong) {
    const auto plan = PayloadPlan::Make(kCut, ranges, 4);
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument) << ranges.size();
  }
}

TEST(PayloadPlanTest, ScalesAreOneFloatATensor) {
  EXPECT_EQ(PayloadPlan::ScaleBytes(0), 0u);
  EXPECT_EQ(PayloadPlan::ScaleBytes(75), 300u);
}

TEST(PayloadPlanDeathTest, AChunkBeyondTheModelIsABug) {
  const PayloadPlan plan(kCut);
  EXPECT_DEATH((void)plan.kind(ChunkIndex(3)), "check failed");
}

TEST(PayloadHashTest, IsTheHashOfCountAndChecksumOfEachChunkInOrder) {
  const std::vector<ChunkSum> chunks = {{.counted = 3, .checksum = 0x1122334455667788},
                                        {.counted = 0, .checksum = 0},
                                        {.counted = UINT32_MAX, .checksum = UINT64_MAX}};
  std::vector<uint8_t> bytes;
  for (const ChunkSum& chunk : chunks) {
    for (const uint64_t number : {uint64_t{chunk.counted}, chunk.checksum}) {
      for (int shift = 0; shift < 64; shift += 8)
        bytes.push_back(static_cast<uint8_t>(number >> shift));
    }
  }
  ASSERT_EQ(bytes.size(), 48u);
  EXPECT_EQ(PayloadHash(chunks), Xxh3(bytes.data(), bytes.size()));
}

TEST(PayloadHashTest, GoldenValues) {
  const ChunkSum one{.counted = 1, .checksum = 0};
  const ChunkSum three{.counted = 3, .checksum = 0x1122334455667788};
  EXPECT_EQ(PayloadHash(std::vector{one}), 0x26f2a1148cf52011);
  EXPECT_EQ(PayloadHash(std::vector{three}), 0x60a79d0e867da4a1);
  EXPECT_EQ(
      PayloadHash(std::vector{
          three, {.counted = 0, .checksum = UINT64_MAX}, {.counted = UINT32_MAX, .checksum = 1}}),
      0x21cdfbf8b4663538);
}

TEST(PayloadHashTest, ChangesWithCountChecksumAndOrder) {
  const ChunkSum a{.counted = 3, .checksum = 5}, b{.counted = 4, .checksum = 6};
  const uint64_t hash = PayloadHash(std::vector{a, b});
  EXPECT_NE(hash, PayloadHash(std::vector{b, a}));
  EXPECT_NE(hash, PayloadHash(std::vector{a}));
  EXPECT_NE(hash, PayloadHash(std::vector{a, {.counted = 5, .checksum = 6}}));
  EXPECT_NE(hash, PayloadHash(std::vector{a, {.counted = 4, .checksum = 7}}));
}

}  // namespace
}  // namespace signvote
