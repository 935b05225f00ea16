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

CommitRing Small(size_t kept, size_t pinned_max) {
  return CommitRing(
      {.rounds_kept = kept, .rounds_pinned_max = pinned_max, .payload_bytes = kBytes});
}

TEST(CommitRingTest, KeepsTheNewestRoundsWithoutGaps) {
  CommitRing ring({.rounds_kept = 4, .payload_bytes = kBytes});
  EXPECT_EQ(ring.rounds_kept(), 4u);
  EXPECT_EQ(ring.rounds_pinned_max(), 4u);
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

TEST(CommitRingTest, APinKeepsWhatWouldHaveGone) {
  CommitRing ring = Small(2, 5);
  PushUntil(&ring, 3);
  CommitRing::Pin pin = ring.PinFrom(Round(1));
  EXPECT_EQ(ring.pins(), 1u);
  PushUntil(&ring, 6);
  EXPECT_EQ(ring.first(), Round(1));
  EXPECT_EQ(ring.bytes(), 5 * kBytes);
  EXPECT_TRUE(pin.status().ok());
  EXPECT_EQ(ring.Find(Round(1))->round, Round(1));
}

TEST(CommitRingTest, APinThatMovesOnLetsTheOlderOnesGo) {
  CommitRing ring = Small(2, 5);
  CommitRing::Pin pin = ring.PinFrom(Round(0));
  PushUntil(&ring, 5);
  EXPECT_EQ(ring.first(), Round(0));
  pin.Advance(Round(2));
  EXPECT_EQ(ring.first(), Round(2));
  // Nobody loses what is kept anyway.
  pin.Advance(Round(5));
  EXPECT_EQ(ring.first(), Round(3));
  PushUntil(&ring, 10);
  EXPECT_EQ(ring.first(), Round(5));
  EXPECT_TRUE(pin.status().ok());
}

TEST(CommitRingTest, TheOldestPinDecides) {
  CommitRing ring = Small(1, 8);
  CommitRing::Pin old = ring.PinFrom(Round(0));
  PushUntil(&ring, 2);
  CommitRing::Pin young = ring.PinFrom(Round(2));
  PushUntil(&ring, 6);
  EXPECT_EQ(ring.first(), Round(0));
  old.Release();
  EXPECT_EQ(ring.pins(), 1u);
  EXPECT_EQ(ring.first(), Round(2));
  young.Release();
  EXPECT_EQ(ring.first(), Round(5));
  EXPECT_EQ(ring.bytes(), kBytes);
}

TEST(CommitRingTest, APinBeyondTheBudgetIsLostAndSaysWhatItWouldTake) {
  CommitRing ring(
      {.start = Round(100), .rounds_kept = 2, .rounds_pinned_max = 5, .payload_bytes = kBytes});
  CommitRing::Pin slow = ring.PinFrom(Round(100));
  CommitRing::Pin quick = ring.PinFrom(Round(100));
  PushUntil(&ring, 104);
  quick.Advance(Round(104));
  PushUntil(&ring, 105);
  EXPECT_TRUE(slow.status().ok());
  PushUntil(&ring, 106);
  // The rounds go on: only the holder loses.
  EXPECT_EQ(slow.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(quick.status().ok());
  EXPECT_EQ(ring.first(), Round(104));
  EXPECT_TRUE(absl::StrContains(slow.status().message(), "from round 100 on"));
  EXPECT_TRUE(absl::StrContains(slow.status().message(), "6 rounds behind"));
  EXPECT_TRUE(absl::StrContains(slow.status().message(), "the 5 rounds"));
  EXPECT_TRUE(absl::StrContains(slow.status().message(), "60 bytes")) << Describe(slow.status());
  PushUntil(&ring, 109);
  EXPECT_TRUE(absl::StrContains(slow.status().message(), "6 rounds behind"));
  EXPECT_TRUE(absl::StrContains(slow.status().message(), "90 bytes")) << Describe(slow.status());
  slow.Advance(Round(109));  // too late
  EXPECT_FALSE(slow.status().ok());
  EXPECT_EQ(ring.first(), Round(104));
}

TEST(CommitRingTest, APinAtTheOldestRoundThatTheBudgetHoldsIsKept) {
  CommitRing ring = Small(2, 5);
  const CommitRing::Pin beyond = ring.PinFrom(Round(0));
  PushUntil(&ring, 1);
  const CommitRing::Pin oldest = ring.PinFrom(Round(1));
  PushUntil(&ring, 6);
  EXPECT_FALSE(beyond.status().ok());
  EXPECT_TRUE(oldest.status().ok());
  EXPECT_EQ(ring.first(), Round(1));
}

TEST(CommitRingTest, APinGoesWithItsHolder) {
  CommitRing ring = Small(1, 8);
  {
    const CommitRing::Pin pin = ring.PinFrom(Round(0));
    PushUntil(&ring, 4);
    EXPECT_EQ(ring.first(), Round(0));
  }
  EXPECT_EQ(ring.pins(), 0u);
  EXPECT_EQ(ring.first(), Round(3));
}

TEST(CommitRingTest, APinCanBeHandedOn) {
  CommitRing ring = Small(1, 8);
  CommitRing::Pin pin = ring.PinFrom(Round(0));
  CommitRing::Pin other = std::move(pin);
  EXPECT_EQ(ring.pins(), 1u);
  PushUntil(&ring, 3);
  EXPECT_EQ(ring.first(), Round(0));
  CommitRing::Pin third = ring.PinFrom(Round(2));
  third = std::move(other);  // lets its own go
  EXPECT_EQ(ring.pins(), 1u);
  EXPECT_EQ(ring.first(), Round(0));
  third.Advance(Round(1));
  EXPECT_EQ(ring.first(), Round(1));
  third = CommitRing::Pin();
  EXPECT_EQ(ring.pins(), 0u);
}

TEST(CommitRingTest, APinOfNothingDoesNothing) {
  CommitRing::Pin none;
  none.Advance(Round(5));
  none.Release();
  EXPECT_TRUE(none.status().ok());
}

TEST(CommitRingDeathTest, GapsAndRoundsOutOfReachAreBugs) {
  CommitRing ring = Small(2, 2);
  PushUntil(&ring, 4);
  EXPECT_DEATH(ring.Push(Empty(5)), "check failed");
  EXPECT_DEATH(ring.Push(Empty(3)), "check failed");
  EXPECT_DEATH((void)ring.PinFrom(Round(1)), "check failed");
  EXPECT_DEATH((void)ring.PinFrom(Round(5)), "check failed");
  CommitRing::Pin pin = ring.PinFrom(Round(3));
  EXPECT_DEATH(pin.Advance(Round(2)), "check failed");
  EXPECT_DEATH(pin.Advance(Round(5)), "check failed");
  EXPECT_DEATH((void)CommitRing({.rounds_kept = 0}), "check failed");
}

}  // namespace
}  // namespace signvote
