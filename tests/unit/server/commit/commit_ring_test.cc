#include "server/replica/commit_ring.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

std::shared_ptr<const CommitRecord> Record(uint64_t round) {
  auto record = std::make_shared<CommitRecord>();
  record->round = Round(round);
  return record;
}

TEST(CommitRingTest, KeepsTheNewestRoundsWithoutGaps) {
  CommitRing ring(4);
  EXPECT_TRUE(ring.Reaches(Round(0)));
  EXPECT_EQ(ring.Find(Round(0)), nullptr);
  for (uint64_t r = 0; r < 10; ++r) ring.Push(Record(r));
  EXPECT_EQ(ring.first(), Round(6));
  EXPECT_EQ(ring.next(), Round(10));
  EXPECT_EQ(ring.Find(Round(5)), nullptr);
  EXPECT_EQ(ring.Find(Round(10)), nullptr);
  for (uint64_t r = 6; r < 10; ++r) EXPECT_EQ(ring.Find(Round(r))->round, Round(r));
  EXPECT_FALSE(ring.Reaches(Round(5)));
  EXPECT_TRUE(ring.Reaches(Round(6)));
  EXPECT_TRUE(ring.Reaches(Round(10)));
  EXPECT_FALSE(ring.Reaches(Round(11)));
}

TEST(CommitRingTest, CapacityFollowsTheBudgetBetweenItsBounds) {
  EXPECT_EQ(CommitRing::CapacityFor(100, 10), 10u);
  EXPECT_EQ(CommitRing::CapacityFor(0, 10), CommitRing::kRoundsMin);
  EXPECT_EQ(CommitRing::CapacityFor(uint64_t{1} << 40, 1), CommitRing::kRoundsMax);
  // The budget of the memory gate: 25 M coordinates and the default of 64 MiB.
  EXPECT_EQ(CommitRing::CapacityFor(uint64_t{64} << 20, 3'125'000), 21u);
}

}  // namespace
}  // namespace signvote
