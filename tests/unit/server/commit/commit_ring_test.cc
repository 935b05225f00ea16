#include "server/commit/commit_ring.h"

#include <gtest/gtest.h>

#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "common/status.h"
#include "tests/unit/server/commit/records.h"

namespace signvote {
namespace {

using testing::Empty;

constexpr uint64_t kBytes = 10;  // of one commit

void PushUntil(CommitRing* ring, uint64_t next) {
  while (ring->next() < Round(next)) ring->Push(Empty(ring->next().value(), kBytes));
}

CommitRing Small(size_t kept) { return CommitRing({.rounds_kept = kept, .payload_bytes = kBytes}); }

TEST(CommitRingTest, KeepsTheNewestRoundsWithoutGaps) {
  CommitRing ring({.rounds_kept = 4, .payload_bytes = kBytes});
  EXPECT_EQ(ring.rounds_kept(), 4u);
  EXPECT_TRUE(ring.Reaches(Round(0)));
  EXPECT_EQ(ring.Find(Round(0)), nullptr);
  PushUntil(&ring, 4);
  EXPECT_EQ(ring.first(), Round(0));
  PushUntil(&ring, 10);
  EXPECT_EQ(ring.first(), Round(6));
  EXPECT_EQ(ring.next(), Round(10));
  EXPECT_EQ(ring.bytes(), 4 * kBytes);
  EXPECT_EQ(ring.Find(Round(5)), nullptr);
  EXPECT_EQ(ring.Find(Round(10)), nullptr);
  for (uint64_t r = 6; r < 10; ++r) EXPECT_EQ(ring.Find(Round(r))->round, Round(r));
  EXPECT_FALSE(ring.Reaches(Round(5)));
  EXPECT_TRUE(ring.Reaches(Round(6)));
  EXPECT_TRUE(ring.Reaches(Round(10)));
  EXPECT_FALSE(ring.Reaches(Round(11)));
}

TEST(CommitRingTest, BeginsAtTheRoundOfARunThatGoesOn) {
  CommitRing ring({.start = Round(100), .rounds_kept = 4});
  EXPECT_EQ(ring.first(), Round(100));
  EXPECT_EQ(ring.next(), Round(100));
  EXPECT_FALSE(ring.Reaches(Round(99)));
  EXPECT_TRUE(ring.Reaches(Round(100)));
  PushUntil(&ring, 102);
  EXPECT_EQ(ring.first(), Round(100));
  EXPECT_EQ(ring.Find(Round(101))->round, Round(101));
}

TEST(CommitRingTest, CapacityFollowsTheBudgetBetweenItsBounds) {
  EXPECT_EQ(CommitRing::CapacityFor(100, 10), 10u);
  EXPECT_EQ(CommitRing::CapacityFor(109, 10), 10u);
  EXPECT_EQ(CommitRing::CapacityFor(0, 10), CommitRing::kRoundsMin);
  EXPECT_EQ(CommitRing::CapacityFor(100, 0), 100u);
  EXPECT_EQ(CommitRing::CapacityFor(uint64_t{1} << 40, 1), CommitRing::kRoundsMax);
  // The budget of the memory gate: 25 M coordinates and the default of 64 MiB.
  EXPECT_EQ(CommitRing::CapacityFor(uint64_t{64} << 20, 3'125'000), 21u);
}

TEST(CommitRingTest, TheDefaultBudgetIsEightVerdictsAndAtLeast64MiB) {
  EXPECT_EQ(CommitRing::DefaultBudget(1), uint64_t{64} << 20);
  EXPECT_EQ(CommitRing::DefaultBudget(uint64_t{8} << 20), uint64_t{64} << 20);
  EXPECT_EQ(CommitRing::DefaultBudget((uint64_t{8} << 20) + 1), (uint64_t{64} << 20) + 8);
  const uint64_t large = 134'000'000 / 8;
  EXPECT_EQ(CommitRing::CapacityFor(CommitRing::DefaultBudget(large), large), 8u);
}

TEST(CommitRingTest, WhoIsTooFarBehindLearnsHowFarAndWhatItWouldTake) {
  CommitRing ring({.start = Round(100), .rounds_kept = 5, .payload_bytes = kBytes});
  PushUntil(&ring, 105);
  EXPECT_TRUE(ring.CheckReaches(Round(100)).ok());
  PushUntil(&ring, 106);
  EXPECT_TRUE(ring.CheckReaches(Round(101)).ok());
  EXPECT_TRUE(ring.CheckReaches(Round(106)).ok());
  const absl::Status late = ring.CheckReaches(Round(100));
  EXPECT_EQ(late.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(absl::StrContains(late.message(), "from round 100 on"));
  EXPECT_TRUE(absl::StrContains(late.message(), "6 rounds behind"));
  EXPECT_TRUE(absl::StrContains(late.message(), "the 5 rounds"));
  EXPECT_TRUE(absl::StrContains(late.message(), "60 bytes")) << Describe(late);
}

TEST(CommitRingDeathTest, GapsAndRoundsOutOfReachAreBugs) {
  CommitRing ring = Small(2);
  PushUntil(&ring, 4);
  EXPECT_DEATH(ring.Push(Empty(5)), "check failed");
  EXPECT_DEATH(ring.Push(Empty(3)), "check failed");
  EXPECT_DEATH((void)ring.CheckReaches(Round(5)), "check failed");
  EXPECT_DEATH((void)CommitRing({.rounds_kept = 0}), "check failed");
}

}  // namespace
}  // namespace signvote
