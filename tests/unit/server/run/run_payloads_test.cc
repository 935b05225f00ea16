#include "server/run/run_payloads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/status.h"

namespace signvote::run {
namespace {

using ::testing::ElementsAre;

std::vector<TensorSpec> Tensors() {
  return {{.name = "embed.weight", .shape = {512, 2}},
          {.name = "head.weight", .shape = {600}, .weight_decay = 0.1f, .dense = true},
          {.name = "norm.weight", .shape = {24}},
          {.name = "head.bias", .shape = {6}, .dense = true}};
}

Layout Model() {
  std::vector<TensorSpec> tensors = Tensors();
  DenseLast(&tensors);
  return *Layout::Make(std::move(tensors));
}

TEST(RunPayloadsTest, DenseTensorsComeLastAndOtherwiseTheOrderStays) {
  const Layout model = Model();
  std::vector<std::string> names;
  for (const TensorSpec& tensor : model.tensors()) names.push_back(tensor.name);
  EXPECT_THAT(names, ElementsAre("embed.weight", "norm.weight", "head.weight", "head.bias"));
  EXPECT_EQ(model.digest(), Layout::Make(Tensors())->digest()) << "the model is the same";
}

TEST(RunPayloadsTest, EveryChunkWithADenseCoordinateIsDense) {
  const Layout layout = Model();
  const ChunkPlan chunks(layout.coordinates(), 512);  // the head begins at 1048
  const auto payloads = PlanPayloads(layout, chunks, Aggregate::kAverage, PayloadKind::kBf16, 5);
  ASSERT_TRUE(payloads.ok()) << Describe(payloads.status());
  ASSERT_EQ(chunks.chunks(), 4u);
  for (uint32_t k = 0; k < 4; ++k) {
    const ChunkIndex chunk(k);
    EXPECT_EQ(payloads->ballots.kind(chunk), k < 2 ? PayloadKind::kSigns : PayloadKind::kBf16) << k;
    EXPECT_EQ(payloads->commits.kind(chunk), k < 2 ? PayloadKind::kCounts : PayloadKind::kBf16)
        << k;
  }
  EXPECT_EQ(payloads->commits.ballots_max(), 5u);
  EXPECT_EQ(payloads->DenseCoordinates(), layout.coordinates() - 1024);
  EXPECT_EQ(payloads->ballots.TotalBytes(), 2 * 64u + 2 * (layout.coordinates() - 1024));
}

TEST(RunPayloadsTest, WithoutDenseTensorsEverythingIsVotedOnAndWithOnlyThoseNothing) {
  std::vector<TensorSpec> tensors = Tensors();
  for (TensorSpec& tensor : tensors) tensor.dense = false;
  const Layout voted_on = *Layout::Make(tensors);
  const ChunkPlan chunks(voted_on.coordinates(), 512);
  const auto voted = PlanPayloads(voted_on, chunks, Aggregate::kVote, PayloadKind::kFp32, 5);
  ASSERT_TRUE(voted.ok());
  EXPECT_TRUE(voted->commits.OnlySigns());
  EXPECT_EQ(voted->DenseCoordinates(), 0u);
  for (TensorSpec& tensor : tensors) tensor.dense = true;
  const Layout layout = *Layout::Make(tensors);
  const auto dense = PlanPayloads(layout, chunks, Aggregate::kVote, PayloadKind::kFp32, 5);
  ASSERT_TRUE(dense.ok());
  EXPECT_EQ(dense->commits.ranges().size(), 1u);
  EXPECT_EQ(dense->commits.TotalBytes(), 4 * layout.coordinates());
}

}  // namespace
}  // namespace signvote::run
