#include "worker/codec/replica_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "common/apply.h"
#include "common/checksum.h"
#include "common/rng.h"

namespace signvote {
namespace {

constexpr uint64_t kD = 3 * 4096 + 77;

std::vector<float> Values(uint64_t seed, size_t n = kD) {
  Rng rng(seed, 0);
  std::vector<float> values(n);
  for (float& v : values) v = static_cast<float>(rng.Bell());
  return values;
}

TEST(HostReplicaMemoryTest, WritesAndReadsTheGivenCoordinatesOnly) {
  std::vector<float> x = Values(1);
  std::vector<float> expected = x;
  HostReplicaMemory memory(x);
  EXPECT_EQ(memory.coordinates(), kD);
  const std::vector<float> piece = Values(2, 1000);
  ASSERT_TRUE(memory.Write(4001, piece).ok());
  std::copy(piece.begin(), piece.end(), expected.begin() + 4001);
  EXPECT_EQ(x, expected);
  std::vector<float> read(1000);
  ASSERT_TRUE(memory.Read(4001, read).ok());
  EXPECT_EQ(read, piece);
  ASSERT_TRUE(memory.Write(kD, {}).ok()) << "nothing, at the end";
}

// A newcomer's pieces stand at different rounds: each gets its own part of a step.
TEST(HostReplicaMemoryTest, AStepInPartsIsTheStep) {
  const Layout layout =
      *Layout::Make({{.name = "w", .shape = {kD - 5}, .step_scale = 0.5f, .weight_decay = 0.1f},
                     {.name = "b", .shape = {5}}});
  std::vector<uint8_t> verdict((kD + 7) / 8);
  Rng rng(3, 0);
  for (uint8_t& byte : verdict) byte = static_cast<uint8_t>(rng.Next());
  std::vector<float> whole = Values(1), parts = Values(1);
  ApplyStep(layout, 0.01f, 0, kD, verdict.data(), 0, whole.data());
  HostReplicaMemory memory(parts);
  uint64_t first = 0;
  for (const uint64_t count : {uint64_t{1}, uint64_t{4096}, uint64_t{0}, uint64_t{63}, kD - 4160}) {
    ASSERT_TRUE(memory.ApplyStep(layout, 0.01f, first, count, verdict.data()).ok());
    first += count;
  }
  ASSERT_EQ(first, kD);
  EXPECT_EQ(parts, whole);
  EXPECT_NE(parts, Values(1));
}

TEST(HostReplicaMemoryTest, AStepOfCountsInPartsIsTheStep) {
  const Layout layout = *Layout::Make({{.name = "w", .shape = {kD}, .weight_decay = 0.1f}});
  std::vector<uint8_t> planes(3 * ((kD + 7) / 8));
  Rng rng(4, 0);
  for (uint8_t& byte : planes) byte = static_cast<uint8_t>(rng.Next());
  const CountsView counts{.planes = planes.data(), .plane_bytes = (kD + 7) / 8, .ballots = 7};
  std::vector<float> whole = Values(1), parts = Values(1);
  ApplyCounts(layout, {.gamma = 0.01f}, 0, kD, counts, nullptr, whole.data());
  HostReplicaMemory memory(parts);
  ASSERT_TRUE(memory.ApplyCounts(layout, {.gamma = 0.01f}, 0, 4097, counts).ok());
  ASSERT_TRUE(memory.ApplyCounts(layout, {.gamma = 0.01f}, 4097, kD - 4097, counts).ok());
  EXPECT_EQ(parts, whole);
  EXPECT_NE(parts, Values(1));
  for (const CountsView& wrong : {CountsView{planes.data(), (kD + 7) / 8, 0, 0},
                                  CountsView{planes.data(), (kD + 7) / 8, 1025, 0},
                                  CountsView{planes.data(), (kD + 7) / 8, 7, 64}}) {
    EXPECT_EQ(memory.ApplyCounts(layout, {.gamma = 0.01f}, 0, kD, wrong).code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(parts, whole) << "what is refused changes nothing";
}

TEST(HostReplicaMemoryTest, TheDigestIsThatOfTheReplica) {
  std::vector<float> x = Values(1);
  HostReplicaMemory memory(x);
  EXPECT_EQ(*memory.Digest(), ReplicaDigest(x.data(), 0, kD));
  const uint64_t before = *memory.Digest();
  x[4096] = -x[4096];
  EXPECT_NE(*memory.Digest(), before);
}

// The same replica in one array and in as many blocks as there are tensors.
TEST(HostReplicaMemoryTest, WhereItsTensorsLieMakesNoDifference) {
  const Layout layout = *Layout::Make({{.name = "a", .shape = {4096}},
                                       {.name = "b", .shape = {5000}, .weight_decay = 0.1f},
                                       {.name = "c", .shape = {1}},
                                       {.name = "d", .shape = {kD - 9097}, .step_scale = 3.0f}});
  std::vector<float> flat = Values(1), x0 = Values(2), g = Values(3);
  g[17] = std::numeric_limits<float>::infinity();
  std::vector<std::vector<float>> blocks, gradients;
  std::vector<float*> pointers;
  std::vector<const float*> g_pointers;
  for (const TensorSpec& t : layout.tensors()) {
    const auto cut = [&](const std::vector<float>& from) {
      return std::vector<float>(from.begin() + static_cast<ptrdiff_t>(t.first),
                                from.begin() + static_cast<ptrdiff_t>(t.first + t.count));
    };
    blocks.push_back(cut(flat));
    gradients.push_back(cut(g));
  }
  for (std::vector<float>& block : blocks) pointers.push_back(block.data());
  for (std::vector<float>& block : gradients) g_pointers.push_back(block.data());
  g_pointers[1] = nullptr;  // a tensor without a gradient: zeros
  std::fill(g.begin() + 4096, g.begin() + 9096, 0.0f);
  HostReplicaMemory whole(flat), pieces(layout, pointers);
  std::vector<uint8_t> verdict((kD + 7) / 8, 0x35);
  const auto expect_equal = [&](const char* after) {
    std::vector<float> read(kD);
    ASSERT_TRUE(pieces.Read(0, read).ok());
    EXPECT_EQ(read, flat) << after;
    EXPECT_EQ(*pieces.Digest(), ReplicaDigest(flat.data(), 0, kD)) << after;
  };
  for (HostReplicaMemory* memory : {&whole, &pieces}) {
    ASSERT_TRUE(memory->ApplyStep(layout, 0.01f, 100, kD - 100, verdict.data()).ok());
  }
  expect_equal("a step");
  for (HostReplicaMemory* memory : {&whole, &pieces}) {
    EXPECT_FALSE(memory->keeps_x0());
    ASSERT_TRUE(memory->KeepX0().ok());
    ASSERT_TRUE(memory->WriteX0(0, x0).ok());
    ASSERT_TRUE(memory->ApplyRescaledStep(layout, 0.01f, 0.5f, 0, kD, verdict.data()).ok());
  }
  expect_equal("a rescaled step");
  const X0Sums of_whole = *whole.SumsAboutX0(layout, PointersInto<const float>(layout, g.data()));
  const X0Sums of_pieces = *pieces.SumsAboutX0(layout, g_pointers);
  EXPECT_EQ(of_whole.inner, of_pieces.inner);
  EXPECT_EQ(of_whole.distance_squared, of_pieces.distance_squared);
  EXPECT_GT(of_whole.distance_squared, 0);
  ASSERT_TRUE(pieces.Rewind(4000, 200).ok());
  ASSERT_TRUE(whole.Rewind(4000, 200).ok());
  expect_equal("a rewind of a part");
  EXPECT_TRUE(std::equal(x0.begin() + 4000, x0.begin() + 4200, flat.begin() + 4000));
  EXPECT_NE(flat[3999], x0[3999]);
  EXPECT_NE(flat[4200], x0[4200]);
}

TEST(HostReplicaMemoryTest, TheRangeOfAGradientLeavesOutWhatIsNotFinite) {
  const Layout layout = *Layout::Make(
      {{.name = "a", .shape = {3}}, {.name = "b", .shape = {2}}, {.name = "c", .shape = {2}}});
  std::vector<float> x(7);
  HostReplicaMemory memory(x);
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float a[] = {3, kInf, 5}, b[] = {2, -kInf},
              c[] = {std::numeric_limits<float>::quiet_NaN(), 4};
  const float* pointers[] = {a, b, c};
  const GradientRange range = *memory.RangeOf(layout, pointers);
  EXPECT_EQ(range.max, 5);
  EXPECT_EQ(range.min, 2);
  pointers[1] = nullptr;  // a tensor without a gradient is zero
  EXPECT_EQ(memory.RangeOf(layout, pointers)->min, 0);
  EXPECT_EQ(memory.RangeOf(layout, pointers)->max, 5);
  const float* nothing[] = {nullptr, nullptr, nullptr};
  EXPECT_EQ(memory.RangeOf(layout, nothing)->max, 0);
  EXPECT_EQ(memory.RangeOf(layout, std::span(nothing).first(2)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(HostReplicaMemoryTest, TheSumsAboutX0AreTheirDefinition) {
  const Layout layout = *Layout::Make({{.name = "a", .shape = {4}}});
  std::vector<float> x = {1.0f, 2.0f, 3.0f, 4.0f};
  HostReplicaMemory memory(x);
  ASSERT_TRUE(memory.KeepX0().ok());
  ASSERT_TRUE(memory.WriteX0(0, std::vector<float>{0.0f, 0.0f, 1.0f, 6.0f}).ok());
  const float g[] = {10.0f, std::numeric_limits<float>::quiet_NaN(), 1.0f, 100.0f};
  const float* const pointers[] = {g};
  const X0Sums sums = *memory.SumsAboutX0(layout, pointers);
  EXPECT_EQ(sums.inner, 10.0 * -1.0 + 1.0 * -2.0 + 100.0 * 2.0);  // Σ g·(x0 − x)
  EXPECT_EQ(sums.distance_squared, 1.0 + 4.0 + 4.0 + 4.0);
}

}  // namespace
}  // namespace signvote
