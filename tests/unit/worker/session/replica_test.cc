#include "worker/session/replica.h"

#include <gtest/gtest.h>

#include "common/apply.h"
#include "common/checksum.h"
#include "common/rng.h"

namespace signvote {
namespace {

constexpr uint64_t kD = 3000;

Layout TestLayout() {
  std::vector<TensorSpec> tensors(2);
  tensors[0].name = "a";
  tensors[0].shape = {1777};
  tensors[0].weight_decay = 0.25f;
  tensors[1].name = "b";
  tensors[1].shape = {kD - 1777};
  tensors[1].step_scale = 2.0f;
  return *Layout::Make(tensors);
}
std::vector<uint8_t> Bits(uint64_t seed) {
  std::vector<uint8_t> bits(kD / 8);
  Rng rng(seed, 3);
  for (uint8_t& byte : bits) byte = static_cast<uint8_t>(rng.Next());
  return bits;
}

TEST(ReplicaTest, PartsAtDifferentRoundsEndUpAsIfTheyHadAlwaysBeenOne) {
  const Layout layout = TestLayout();
  for (uint64_t seed = 0; seed < 50; ++seed) {
    Rng rng(seed, 1);
    std::vector<std::vector<float>> history(1, std::vector<float>(kD));
    for (float& value : history[0]) value = static_cast<float>(rng.Uniform() - 0.5);
    for (uint64_t r = 0; r < 6; ++r) {
      history.push_back(history.back());
      ApplyStep(layout, 0.125f, 0, kD, Bits(r).data(), 0, history.back().data());
    }
    std::vector<float> x(kD, 99.0f);
    HostReplicaMemory memory(x);
    Replica replica(&layout, &memory);
    uint64_t lowest = 6;
    for (uint64_t first = 0; first < kD;) {
      const uint64_t count = std::min<uint64_t>(1 + rng.Below(900), kD - first);
      const uint64_t round = 2 + rng.Below(4);
      lowest = std::min(lowest, round);
      std::copy_n(history[round].begin() + static_cast<ptrdiff_t>(first), count,
                  x.begin() + static_cast<ptrdiff_t>(first));
      EXPECT_FALSE(replica.complete());
      ASSERT_TRUE(replica.AddPart(Round(round), first, count).ok());
      first += count;
    }
    ASSERT_TRUE(replica.complete());
    EXPECT_EQ(replica.round().value(), lowest);
    for (uint64_t r = lowest; r < 6; ++r)
      ASSERT_TRUE(replica.Apply(Round(r), 0.125f, Bits(r).data()).ok());
    EXPECT_TRUE(replica.level());
    EXPECT_EQ(replica.round().value(), 6u);
    EXPECT_EQ(x, history[6]) << seed;
    EXPECT_EQ(replica.Digest().value(), ReplicaDigest(x.data(), 0, kD));
  }
}

TEST(ReplicaTest, ACommitBeyondTheNextIsRefusedAndChangesNothing) {
  const Layout layout = TestLayout();
  std::vector<float> x(kD, 1.0f);
  HostReplicaMemory memory(x);
  Replica replica(&layout, &memory);
  EXPECT_EQ(replica.Apply(Round(0), 0.5f, Bits(1).data()).code(),
            absl::StatusCode::kFailedPrecondition);
  replica.SetWhole(Round(4));
  EXPECT_EQ(replica.Apply(Round(5), 0.5f, Bits(1).data()).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(x, std::vector<float>(kD, 1.0f));
  EXPECT_TRUE(replica.Apply(Round(3), 0.5f, Bits(1).data()).ok())
      << "an old commit has no part left to move";
  EXPECT_EQ(x, std::vector<float>(kD, 1.0f));
  EXPECT_EQ(replica.round().value(), 4u);
}

TEST(ReplicaTest, PartsMustFollowEachOtherAndFit) {
  const Layout layout = TestLayout();
  std::vector<float> x(kD);
  HostReplicaMemory memory(x);
  Replica replica(&layout, &memory);
  EXPECT_EQ(replica.AddPart(Round(1), 1, 10).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(replica.AddPart(Round(1), 0, 0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(replica.AddPart(Round(1), 0, kD + 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(replica.AddPart(Round(1), 0, kD - 1).ok());
  EXPECT_EQ(replica.AddPart(Round(1), kD - 1, UINT64_MAX).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(replica.AddPart(Round(1), kD - 1, 1).ok());
  EXPECT_TRUE(replica.level());
}

}  // namespace
}  // namespace signvote
