#include "common/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "common/bits.h"
#include "common/checksum.h"
#include "common/status.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;

std::vector<TensorSpec> Small() {
  return {{.name = "w", .shape = {2, 3}, .weight_decay = 0.1f}, {.name = "b", .step_scale = 0.5f}};
}

Layout Made(std::vector<TensorSpec> tensors) {
  auto layout = Layout::Make(std::move(tensors));
  EXPECT_TRUE(layout.ok()) << Describe(layout.status());
  return *std::move(layout);
}

TEST(Layout, CoordinatesFollowTheShapesWithoutGaps) {
  const Layout layout = Made(Small());
  ASSERT_EQ(layout.tensors().size(), 2u);
  EXPECT_EQ(layout.tensors()[0].first, 0u);
  EXPECT_EQ(layout.tensors()[0].count, 6u);
  EXPECT_EQ(layout.tensors()[1].first, 6u);
  EXPECT_EQ(layout.tensors()[1].count, 1u);
  EXPECT_EQ(layout.coordinates(), 7u);
  EXPECT_EQ(layout.step_scale_max(), 1.0f);
}

TEST(Layout, WhatTheCallerSaysAboutFirstAndCountDoesNotMatter) {
  std::vector<TensorSpec> tensors = Small();
  tensors[0].first = 99;
  tensors[1].count = 99;
  EXPECT_EQ(Made(tensors).digest(), Made(Small()).digest());
}

TEST(Layout, NamesAndShapesMakeTheDigestWhateverTheOrder) {
  const Layout layout = Made(Small());
  std::vector<std::vector<TensorSpec>> same(3, Small());
  std::swap(same[0][0], same[0][1]);
  same[1][0].step_scale = 2.0f;
  same[2][0].weight_decay = 0.2f;
  for (const auto& tensors : same) {
    EXPECT_EQ(Made(tensors).digest(), layout.digest());
    EXPECT_EQ(layout.FirstDifference(Made(tensors)), "");
    EXPECT_FALSE(Made(tensors) == layout);
  }
  EXPECT_TRUE(Made(Small()) == layout);
  std::set<uint64_t> digests = {layout.digest()};
  std::vector<std::vector<TensorSpec>> others(6, Small());
  others[0][0].name = "v";
  others[1][0].shape = {3, 2};
  others[2][0].shape = {6};
  others[3].push_back({.name = "more", .shape = {1}});
  others[4].pop_back();
  std::swap(others[5][0].shape, others[5][1].shape);
  for (const auto& tensors : others) digests.insert(Made(tensors).digest());
  EXPECT_EQ(digests.size(), 7u);
}

// The bytes of the header's definition, written out by hand.
TEST(Layout, TheDigestIsThatOfTheBytesInTheHeader) {
  std::string bytes = "signvote-layout-2";
  const auto word = [&bytes](uint64_t value, int size) {
    for (int i = 0; i < size; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xFF);
  };
  word(2, 4);
  word(1, 4);
  bytes += "b";
  word(0, 4);
  word(1, 4);
  bytes += "w";
  word(2, 4);
  word(2, 8);
  word(3, 8);
  EXPECT_EQ(Made(Small()).digest(), Xxh3(bytes.data(), bytes.size()));
  EXPECT_EQ(Made(Small()).digest(), 0x31eb96a6d89bd74bULL);
}

TEST(Layout, NegativeZeroDecayIsZeroDecay) {
  std::vector<TensorSpec> tensors = Small();
  tensors[1].weight_decay = -0.0f;
  EXPECT_FALSE(std::signbit(Made(tensors).tensors()[1].weight_decay));
}

TEST(Layout, ABadTensorIsRefusedByName) {
  struct Case {
    TensorSpec tensor;
    const char* message;
  };
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Case cases[] = {
      {{.name = ""}, "tensor 2 of the layout has an empty name"},
      {{.name = "w"}, "two tensors of the layout are named w"},
      {{.name = "__metadata__"}, "safetensors reserves"},
      {{.name = "a\nb"}, "not UTF-8 or has control characters"},
      {{.name = "\xC3"}, "not UTF-8"},
      {{.name = "\xC0\x80"}, "not UTF-8"},
      {{.name = "\xED\xA0\x80"}, "not UTF-8"},
      {{.name = "\xF5\x80\x80\x80"}, "not UTF-8"},
      {{.name = "\xE0\x80\x80"}, "not UTF-8"},
      {{.name = "\x80"}, "not UTF-8"},
      {{.name = "a\xC2\x9B"}, "control characters"},
      {{.name = "a\xE2\x80\xAE"}, "control characters"},
      {{.name = std::string(1025, 'n')}, "1025 bytes"},
      {{.name = "z", .shape = {3, 0}}, "tensor z has a zero dimension: [3, 0]"},
      {{.name = "z", .shape = {uint64_t{1} << 41}}, "tensor z [2199023255552] has more than 2^40"},
      {{.name = "z", .shape = {uint64_t{1} << 39, uint64_t{1} << 39}}, "more than 2^40"},
      {{.name = "z", .shape = {uint64_t{1} << 40}}, "with tensor z the layout has more than 2^40"},
      {{.name = "z", .step_scale = 0.0f}, "tensor z: step_scale 0"},
      {{.name = "z", .step_scale = -1.0f}, "tensor z: step_scale -1"},
      {{.name = "z", .step_scale = inf}, "tensor z: step_scale inf"},
      {{.name = "z", .step_scale = nan}, "tensor z: step_scale"},
      {{.name = "z", .weight_decay = -0.1f}, "tensor z: weight_decay -0.1"},
      {{.name = "z", .weight_decay = inf}, "tensor z: weight_decay inf"},
      {{.name = "z", .weight_decay = nan}, "tensor z: weight_decay"},
  };
  for (const Case& c : cases) {
    std::vector<TensorSpec> tensors = Small();
    tensors.push_back(c.tensor);
    const absl::Status status = Layout::Make(tensors).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
  EXPECT_EQ(Layout::Make({}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Layout, WhatNoModelHasIsRefused) {
  std::vector<TensorSpec> tensors(65'537);
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].name = "t" + std::to_string(i);
  EXPECT_EQ(Layout::Make(tensors).status().message(),
            "the layout has 65537 tensors; at most 65536 are allowed");
  tensors.pop_back();
  EXPECT_TRUE(Layout::Make(tensors).ok());
  EXPECT_EQ(Layout::Make({{.name = "w", .shape = std::vector<uint64_t>(65, 1)}}).status().message(),
            "tensor w has 65 dimensions; at most 64 are allowed");
  EXPECT_TRUE(Layout::Make({{.name = "w", .shape = std::vector<uint64_t>(64, 1)}}).ok());
}

TEST(Layout, NamesMayBeAnyUtf8) {
  EXPECT_EQ(Made({{.name = "größe.\xE2\x82\xAC.\xF0\x9F\x98\x80", .shape = {4}}}).coordinates(),
            4u);
}

TEST(Layout, FirstDifferenceNamesTheFirstTensorByNameWithBothSides) {
  const Layout layout = Made(Small());
  EXPECT_EQ(layout.FirstDifference(Made(Small())), "");
  std::vector<TensorSpec> other = Small();
  other[0].shape = {9};
  EXPECT_EQ(layout.FirstDifference(Made(other)), "tensor w is [2, 3] here, [9] there");
  other[1].shape = {9};
  EXPECT_EQ(layout.FirstDifference(Made(other)), "tensor b is [] here, [9] there");
  other = Small();
  other.push_back({.name = "extra", .shape = {2}});
  EXPECT_EQ(layout.FirstDifference(Made(other)),
            "tensor extra [2] is missing here (2 tensors here, 3 there)");
  EXPECT_EQ(Made(other).FirstDifference(layout),
            "tensor extra [2] is missing there (3 tensors here, 2 there)");
  other = Small();
  other[0].name = "z";
  EXPECT_EQ(layout.FirstDifference(Made(other)),
            "tensor w [2, 3] is missing there (2 tensors here, 2 there)");
  EXPECT_EQ(Made(other).FirstDifference(layout),
            "tensor w [2, 3] is missing here (2 tensors here, 2 there)");
}

TEST(ChunkPlan, CoversEveryCoordinateOnce) {
  for (const uint64_t d :
       {uint64_t{1}, uint64_t{511}, uint64_t{512}, uint64_t{513}, uint64_t{5000}}) {
    const ChunkPlan plan(d, 512);
    uint64_t covered = 0;
    size_t bytes = 0;
    for (uint32_t k = 0; k < plan.chunks(); ++k) {
      EXPECT_EQ(plan.First(ChunkIndex(k)), covered);
      EXPECT_EQ(plan.ByteOffset(ChunkIndex(k)), bytes);
      EXPECT_EQ(plan.Bytes(ChunkIndex(k)), BytesForBits(plan.Count(ChunkIndex(k))));
      covered += plan.Count(ChunkIndex(k));
      bytes += plan.Bytes(ChunkIndex(k));
    }
    EXPECT_EQ(covered, d);
    EXPECT_EQ(bytes, plan.TotalBytes());
    EXPECT_EQ(plan.TotalBytes(), BytesForBits(d));
  }
}

TEST(ChunkPlan, DefaultCutIsEightChunksOrFineOnesWithinItsBounds) {
  for (uint64_t d = 1; d < uint64_t{1} << 36; d = d * 3 + 1) {
    const uint64_t c = ChunkPlan::DefaultChunkCoordinates(d);
    EXPECT_EQ(c % kChunkCoordinatesMultiple, 0u);
    EXPECT_GE(c, uint64_t{1} << 15);
    EXPECT_LE(c, uint64_t{1} << 21);
    const uint32_t chunks = ChunkPlan(d, c).chunks();
    if (d >= uint64_t{1} << 19 && d <= uint64_t{1} << 22) {
      EXPECT_GE(chunks, 7u) << d;
      EXPECT_LE(chunks, 8u) << d;
    }
    if (d > uint64_t{1} << 22 && d <= 48 * (uint64_t{1} << 19)) {
      EXPECT_EQ(c, uint64_t{1} << 19) << d;
    }
    // The last chunk's way back is at most a fortieth of a large ballot's time.
    if (d >= 48 * (uint64_t{1} << 19)) {
      EXPECT_GE(chunks, 47u) << d;
    }
  }
}

TEST(ChunkPlanDeathTest, AnImpossibleCutIsABug) {
  EXPECT_DEATH(ChunkPlan(0, 512), "check failed");
  EXPECT_DEATH(ChunkPlan(10, 0), "check failed");
  EXPECT_DEATH(ChunkPlan(10, 500), "check failed");
  EXPECT_DEATH((void)ChunkPlan(10, 512).Count(ChunkIndex(1)), "check failed");
}

}  // namespace
}  // namespace signvote
