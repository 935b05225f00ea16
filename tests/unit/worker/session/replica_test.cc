#include "worker/session/replica.h"

#include <gtest/gtest.h>

#include <cmath>

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

// A step of `round` with the verdict of Bits(round).
class Step {
 public:
  Step(uint64_t round, float stepsize, float rho = 1) {
    slot_.plan = &plan_;
    slot_.bits.assign(kD / 8, 0);
    const std::vector<uint8_t> bits = Bits(round);
    std::copy(bits.begin(), bits.end(), slot_.bits.begin());
    event_.round = Round(round);
    event_.stepsize = event_.decay_step = stepsize;
    event_.rho = rho;
    event_.slot = &slot_;
  }
  const CommitEvent& event() const { return event_; }

 private:
  const PayloadPlan plan_{ChunkPlan(kD, 512)};
  VerdictStore::Slot slot_;
  CommitEvent event_;
};

CommitEvent Of(CommitKind kind, uint64_t round) {
  CommitEvent event;
  event.kind = kind;
  event.round = Round(round);
  return event;
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
    Replica replica(&layout, &memory, Replica::X0::kUnused);
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
    for (uint64_t r = lowest; r < 6; ++r) ASSERT_TRUE(replica.Apply(Step(r, 0.125f).event()).ok());
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
  Replica replica(&layout, &memory, Replica::X0::kUnused);
  EXPECT_EQ(replica.round(), Round(0));
  EXPECT_FALSE(replica.complete());
  EXPECT_FALSE(replica.Digest().ok());
  EXPECT_EQ(replica.Apply(Step(0, 0.5f).event()).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(replica.AddPart(Round(4), 0, kD).ok());
  EXPECT_EQ(replica.Apply(Step(5, 0.5f).event()).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(x, std::vector<float>(kD, 1.0f));
  EXPECT_TRUE(replica.Apply(Step(3, 0.5f).event()).ok()) << "no part is left that it moves";
  EXPECT_EQ(x, std::vector<float>(kD, 1.0f));
  EXPECT_EQ(replica.round().value(), 4u);
}

TEST(ReplicaTest, CommitsOfEveryKindMoveWhatIsThere) {
  const Layout layout = TestLayout();
  std::vector<float> x(kD);
  for (size_t i = 0; i < kD; ++i) x[i] = static_cast<float>(i % 13) - 6.0f;
  const std::vector<float> x0 = x;
  HostReplicaMemory memory(x);
  ASSERT_TRUE(memory.KeepX0().ok());
  Replica replica(&layout, &memory, Replica::X0::kNeeded);
  ASSERT_TRUE(replica.BeginHere().ok());
  EXPECT_TRUE(replica.level());
  ASSERT_TRUE(replica.Apply(Step(0, 0.5f).event()).ok());
  std::vector<float> expected = x0;
  ApplyStep(layout, 0.5f, 0, kD, Bits(0).data(), 0, expected.data());
  EXPECT_EQ(x, expected);
  ASSERT_TRUE(replica.Apply(Of(CommitKind::kNone, 1)).ok());
  EXPECT_EQ(x, expected);
  ASSERT_TRUE(replica.Apply(Step(2, 0.5f, 0.25f).event()).ok());
  ApplyStep(layout, {.gamma = 0.5f, .rho = 0.25f}, 0, kD, Bits(2).data(), 0, x0.data(),
            expected.data());
  EXPECT_EQ(x, expected);
  Step decayed(3, 0.5f);
  CommitEvent event = decayed.event();
  event.decay_step = 0.125f;
  event.scales = {2.0f, 0.5f};
  ASSERT_TRUE(replica.Apply(event).ok());
  ApplyStep(layout, {.gamma = 0.5f, .decay_step = 0.125f, .scales = event.scales}, 0, kD,
            Bits(3).data(), 0, nullptr, expected.data());
  EXPECT_EQ(x, expected);
  ASSERT_TRUE(replica.Apply(Of(CommitKind::kRewind, 4)).ok());
  EXPECT_EQ(x, x0);
  EXPECT_EQ(replica.round(), Round(5));
}

TEST(ReplicaTest, X0ThatWasLetGoOfTakesNoMemoryAndComesBackWithTheNextTransfer) {
  const Layout layout = TestLayout();
  std::vector<float> x(kD, 1.0f);
  HostReplicaMemory memory(x);
  ASSERT_TRUE(memory.KeepX0().ok());
  Replica replica(&layout, &memory, Replica::X0::kNeeded);
  ASSERT_TRUE(replica.BeginHere().ok());
  replica.LetGoOfX0();
  EXPECT_FALSE(memory.keeps_x0());
  EXPECT_FALSE(replica.needs_x0());
  EXPECT_TRUE(replica.level());
  CommitEvent rewind;
  rewind.kind = CommitKind::kRewind;
  EXPECT_EQ(replica.Apply(rewind).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(replica.Apply(Step(0, 0.5f).event()).ok());
  replica.Clear();
  ASSERT_TRUE(replica.ExpectX0().ok());
  EXPECT_TRUE(memory.keeps_x0());
  ASSERT_TRUE(replica.AddPart(Round(0), 0, kD).ok());
  EXPECT_FALSE(replica.complete());
  ASSERT_TRUE(replica.AddX0Part(0, kD).ok());
  EXPECT_TRUE(replica.Apply(rewind).ok());

  Replica without(&layout, &memory, Replica::X0::kUnused);
  without.LetGoOfX0();
  EXPECT_TRUE(memory.keeps_x0()) << "it is not this replica's";
}

TEST(ReplicaTest, AStepOfCountsMovesEachPartByTheMeanOfItsBallots) {
  const Layout layout = TestLayout();
  const ChunkPlan chunks(kD, 512);
  const PayloadPlan plan = *PayloadPlan::Make(
      chunks, {{.first = ChunkIndex(0), .chunks = chunks.chunks(), .kind = PayloadKind::kCounts}},
      7);
  VerdictStore::Slot slot{.plan = &plan};
  slot.bits.assign(plan.TotalBytes(), 0);
  Rng rng(9, 4);
  for (uint32_t k = 0; k < chunks.chunks(); ++k) {
    slot.sums.push_back({.counted = 1 + k});  // one to six ballots
    const size_t bytes = plan.Bytes(ChunkIndex(k), 1 + k);
    // Counts beyond the ballots say nothing that this test is about.
    for (size_t i = 0; i < bytes; ++i)
      slot.bits[plan.Offset(ChunkIndex(k)) + i] = static_cast<uint8_t>(rng.Next());
  }
  CommitEvent event;
  event.round = Round(0);
  event.stepsize = event.decay_step = 0.25f;
  event.rho = 0.5f;
  event.slot = &slot;
  std::vector<float> x(kD), x0(kD, 0.5f);
  for (float& value : x) value = static_cast<float>(rng.Uniform() - 0.5);
  std::vector<float> expected = x;
  HostReplicaMemory memory(x);
  ASSERT_TRUE(memory.KeepX0().ok());
  ASSERT_TRUE(memory.WriteX0(0, x0).ok());
  Replica replica(&layout, &memory, Replica::X0::kNeeded);
  // The middle part stands at a later round and is left alone.
  ASSERT_TRUE(replica.AddX0Part(0, kD).ok());
  ASSERT_TRUE(replica.AddPart(Round(0), 0, 700).ok());
  ASSERT_TRUE(replica.AddPart(Round(1), 700, 100).ok());
  ASSERT_TRUE(replica.AddPart(Round(0), 800, kD - 800).ok());
  ASSERT_TRUE(replica.Apply(event).ok());
  for (uint64_t i = 0; i < kD; ++i) {
    if (i >= 700 && i < 800) continue;
    const uint32_t k = static_cast<uint32_t>(i / 512);
    const ChunkIndex chunk(k);
    uint32_t ones = 0;
    for (uint32_t p = 0; p < CountPlanes(1 + k); ++p) {
      const uint8_t* plane = slot.bits.data() + plan.Offset(chunk) + p * chunks.Bytes(chunk);
      ones |= static_cast<uint32_t>((plane[i % 512 / 8] >> (i % 8)) & 1) << p;
    }
    const TensorSpec& tensor = layout.tensors()[i < 1777 ? 0 : 1];
    const TensorStep step = MakeTensorStep(0.25f, tensor);
    const float n = static_cast<float>(1 + k);
    const float w = (2.0f * static_cast<float>(ones) - n) / n;
    const float back = std::fma(0.5f, expected[i] - 0.5f, 0.5f);
    expected[i] = std::fma(back, step.c, -(step.a * w));
  }
  EXPECT_EQ(x, expected);
  EXPECT_TRUE(replica.level());
}

TEST(ReplicaTest, WhatWantsX0WaitsForAllOfIt) {
  const Layout layout = TestLayout();
  std::vector<float> x(kD, 2.0f);
  HostReplicaMemory memory(x);
  ASSERT_TRUE(memory.KeepX0().ok());
  Replica replica(&layout, &memory, Replica::X0::kNeeded);
  ASSERT_TRUE(replica.AddPart(Round(1), 0, kD).ok());
  EXPECT_FALSE(replica.complete());
  ASSERT_TRUE(replica.AddX0Part(0, kD - 1).ok());
  EXPECT_EQ(replica.Apply(Of(CommitKind::kRewind, 1)).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(replica.Apply(Step(1, 0.5f, 0.5f).event()).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(replica.round(), Round(1));
  ASSERT_TRUE(replica.Apply(Step(1, 0.0f).event()).ok()) << "an ordinary step wants none";
  EXPECT_EQ(replica.AddX0Part(kD - 1, 2).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(replica.AddX0Part(0, 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(replica.AddX0Part(kD - 1, 0).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(replica.AddX0Part(kD - 1, 1).ok());
  EXPECT_TRUE(replica.level());
  ASSERT_TRUE(replica.Apply(Of(CommitKind::kRewind, 2)).ok());
  EXPECT_EQ(x, std::vector<float>(kD, 0.0f));
  Replica without(&layout, &memory, Replica::X0::kUnused);
  EXPECT_EQ(without.AddX0Part(0, 1).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(without.AddPart(Round(1), 0, kD).ok());
  EXPECT_EQ(without.Apply(Of(CommitKind::kRewind, 1)).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(ReplicaTest, PartsMustFollowEachOtherAndFit) {
  const Layout layout = TestLayout();
  std::vector<float> x(kD);
  HostReplicaMemory memory(x);
  Replica replica(&layout, &memory, Replica::X0::kUnused);
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
