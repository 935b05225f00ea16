#include "server/round/shares.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace signvote::round {
namespace {

class ShareTableTest : public testing::Test {
 protected:
  ShareTable& table() {
    if (!table_.has_value()) table_.emplace(hold_, std::vector<ShareState>{});
    return *table_;
  }
  Share Assign(uint32_t worker, uint64_t round) {
    table().Expire(Round(round), out_);
    return table().Assign(WorkerId(worker), out_);
  }

  uint64_t hold_ = 10;
  std::optional<ShareTable> table_;
  Actions out_;
};

TEST_F(ShareTableTest, ANewcomerGetsTheLowestFreeShare) {
  for (uint32_t w = 0; w < 4; ++w) EXPECT_EQ(Assign(w + 10, 0), Share(w));
  EXPECT_EQ(Assign(11, 0), Share(1));  // its own
  table().Forget(WorkerId(11), out_);
  table().Forget(WorkerId(12), out_);
  EXPECT_FALSE(table().Find(WorkerId(11)).has_value());
  EXPECT_EQ(Assign(50, 1), Share(1));
  EXPECT_EQ(Assign(51, 1), Share(2));
  EXPECT_EQ(Assign(52, 1), Share(4));
}

TEST_F(ShareTableTest, AReservedShareComesBackToItsWorkerOnly) {
  Assign(1, 0);
  Assign(2, 0);
  table().Reserve(WorkerId(1), Round(5));
  EXPECT_EQ(Assign(3, 14), Share(2));
  EXPECT_EQ(Assign(1, 14), Share(0));
  EXPECT_EQ(Assign(4, 20), Share(3));  // no longer reserved: taken
}

TEST_F(ShareTableTest, AReservationEndsAfterTheHoldTime) {
  Assign(1, 0);
  table().Reserve(WorkerId(1), Round(5));
  EXPECT_EQ(Assign(2, 15), Share(0));
  EXPECT_EQ(Assign(1, 15), Share(1));
}

TEST_F(ShareTableTest, AShareCanBeHeldForEver) {
  hold_ = std::numeric_limits<uint64_t>::max();
  Assign(1, 0);
  table().Reserve(WorkerId(1), Round(5));
  EXPECT_EQ(Assign(2, 1'000'000), Share(1));
  EXPECT_EQ(Assign(1, 1'000'000), Share(0));
}

TEST_F(ShareTableTest, WithoutHoldTimeAShareIsFreeInTheSameRound) {
  hold_ = 0;
  Assign(1, 0);
  table().Reserve(WorkerId(1), Round(0));
  EXPECT_EQ(Assign(2, 0), Share(0));
}

TEST_F(ShareTableTest, EveryChangeLeavesAsAnAction) {
  Assign(1, 0);
  Assign(1, 1);
  ASSERT_EQ(out_.size(), 1u);
  EXPECT_EQ(std::get<ShareGiven>(out_[0]).worker, WorkerId(1));
  EXPECT_EQ(std::get<ShareGiven>(out_[0]).share, Share(0));
  table().Reserve(WorkerId(1), Round(1));
  table().Expire(Round(11), out_);
  ASSERT_EQ(out_.size(), 2u);
  EXPECT_EQ(std::get<ShareFreed>(out_[1]).worker, WorkerId(1));
  table().Forget(WorkerId(1), out_);
  table().Reserve(WorkerId(1), Round(1));
  EXPECT_EQ(out_.size(), 2u);
}

TEST_F(ShareTableTest, GoesOnFromItsStateAsAfterLosingEverybody) {
  Assign(1, 0);
  Assign(2, 0);
  table().Reserve(WorkerId(1), Round(3));
  const std::vector<ShareState> state = table().State(Round(8));
  EXPECT_EQ(state, (std::vector<ShareState>{{Share(0), WorkerId(1), Round(13)},
                                            {Share(1), WorkerId(2), Round(18)}}));
  table_.emplace(hold_, state);
  EXPECT_EQ(table().Find(WorkerId(2)), Share(1));
  EXPECT_EQ(Assign(3, 13), Share(0));
  EXPECT_EQ(Assign(2, 17), Share(1));
}

}  // namespace
}  // namespace signvote::round
