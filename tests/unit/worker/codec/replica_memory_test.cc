#include "worker/codec/replica_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
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

TEST(HostReplicaMemoryTest, TheDigestIsThatOfTheReplica) {
  std::vector<float> x = Values(1);
  HostReplicaMemory memory(x);
  EXPECT_EQ(*memory.Digest(), ReplicaDigest(x.data(), 0, kD));
  const uint64_t before = *memory.Digest();
  x[4096] = -x[4096];
  EXPECT_NE(*memory.Digest(), before);
}

}  // namespace
}  // namespace signvote
