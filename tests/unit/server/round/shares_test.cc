#include "server/round/shares.h"

#include <gtest/gtest.h>

#include <limits>

namespace signvote::round {
namespace {

TEST(ShareTableTest, ANewcomerGetsTheLowestFreeShare) {
  ShareTable table(10);
  for (uint32_t w = 0; w < 4; ++w) EXPECT_EQ(table.Assign(WorkerId(w + 10), Round(0)), Share(w));
  table.Forget(WorkerId(11));
  table.Forget(WorkerId(12));
  EXPECT_EQ(table.Assign(WorkerId(50), Round(1)), Share(1));
  EXPECT_EQ(table.Assign(WorkerId(51), Round(1)), Share(2));
  EXPECT_EQ(table.Assign(WorkerId(52), Round(1)), Share(4));
}

TEST(ShareTableTest, AReservedShareComesBackToItsWorkerOnly) {
  ShareTable table(10);
  table.Assign(WorkerId(1), Round(0));
  table.Assign(WorkerId(2), Round(0));
  table.Reserve(WorkerId(1), Round(5));
  EXPECT_EQ(table.Assign(WorkerId(3), Round(14)), Share(2));
  EXPECT_EQ(table.Assign(WorkerId(1), Round(14)), Share(0));
  EXPECT_EQ(table.Assign(WorkerId(4), Round(20)), Share(3));  // no longer reserved: taken
}

TEST(ShareTableTest, AReservationEndsAfterTheHoldTime) {
  ShareTable table(10);
  table.Assign(WorkerId(1), Round(0));
  table.Reserve(WorkerId(1), Round(5));
  EXPECT_EQ(table.Assign(WorkerId(2), Round(15)), Share(0));
  EXPECT_EQ(table.Assign(WorkerId(1), Round(15)), Share(1));
}

TEST(ShareTableTest, AShareCanBeHeldForEver) {
  ShareTable table(std::numeric_limits<uint64_t>::max());
  table.Assign(WorkerId(1), Round(0));
  table.Reserve(WorkerId(1), Round(5));
  EXPECT_EQ(table.Assign(WorkerId(2), Round(1'000'000)), Share(1));
  EXPECT_EQ(table.Assign(WorkerId(1), Round(1'000'000)), Share(0));
}

TEST(ShareTableTest, WithoutHoldTimeAShareIsFreeAtOnce) {
  ShareTable table(0);
  table.Assign(WorkerId(1), Round(0));
  table.Reserve(WorkerId(1), Round(0));
  EXPECT_FALSE(table.Find(WorkerId(1)).has_value());
}

}  // namespace
}  // namespace signvote::round
