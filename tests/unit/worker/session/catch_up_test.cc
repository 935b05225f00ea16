#include "worker/session/catch_up.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class CatchUpTest : public testing::Test {
 protected:
  static CommitEvent Commit(uint64_t round) {
    CommitEvent commit;
    commit.round = Round(round);
    return commit;
  }
  CatchUp Make() {
    return CatchUp(
        [this](const CommitEvent& commit) {
          if (commit.round.value() >= refused_from_) return refusal_;
          applied_.push_back(commit.round.value());
          return absl::OkStatus();
        },
        [this](const CommitEvent& commit) { let_go_.push_back(commit.round.value()); });
  }

  uint64_t refused_from_ = UINT64_MAX;
  absl::Status refusal_ = absl::FailedPreconditionError("not yet");
  std::vector<uint64_t> applied_, let_go_;
};

TEST_F(CatchUpTest, OnlyWhatNoLaterPartNeedsIsAppliedAndLetGo) {
  CatchUp catch_up = Make();
  for (uint64_t r = 4; r < 9; ++r) catch_up.Add(Commit(r));
  ASSERT_TRUE(catch_up.FollowTo(Round(4)).ok());
  EXPECT_THAT(applied_, IsEmpty());
  ASSERT_TRUE(catch_up.FollowTo(Round(7)).ok());
  EXPECT_THAT(applied_, ElementsAre(4, 5, 6));
  EXPECT_THAT(let_go_, ElementsAre(4, 5, 6));
  EXPECT_EQ(catch_up.kept(), 2u);
  ASSERT_TRUE(catch_up.FollowAll().ok());
  EXPECT_THAT(applied_, ElementsAre(4, 5, 6, 7, 8));
  EXPECT_THAT(let_go_, ElementsAre(4, 5, 6, 7, 8));
}

TEST_F(CatchUpTest, OneThatDoesNotFollowTheLastIsOfNoUse) {
  CatchUp catch_up = Make();
  catch_up.Add(Commit(4));
  catch_up.Add(Commit(6));
  catch_up.Add(Commit(4));
  EXPECT_THAT(let_go_, ElementsAre(6, 4));
  catch_up.Add(Commit(5));
  EXPECT_EQ(catch_up.kept(), 2u);
}

TEST_F(CatchUpTest, WhatCannotBeAppliedYetIsKeptWithAllAfterIt) {
  CatchUp catch_up = Make();
  for (uint64_t r = 4; r < 7; ++r) catch_up.Add(Commit(r));
  refused_from_ = 5;
  EXPECT_TRUE(catch_up.FollowAll().ok());
  EXPECT_THAT(let_go_, ElementsAre(4));
  EXPECT_EQ(catch_up.kept(), 2u);
  refused_from_ = UINT64_MAX;
  EXPECT_TRUE(catch_up.FollowAll().ok());
  EXPECT_THAT(applied_, ElementsAre(4, 5, 6));
}

TEST_F(CatchUpTest, WhatTheMemoryFailsWithIsReturned) {
  CatchUp catch_up = Make();
  catch_up.Add(Commit(4));
  catch_up.Add(Commit(5));
  refused_from_ = 4;
  refusal_ = absl::InternalError("device lost");
  EXPECT_EQ(catch_up.FollowAll(), refusal_);
  EXPECT_THAT(let_go_, ElementsAre(4));
}

TEST_F(CatchUpTest, WhatIsLeftIsLetGoOnce) {
  {
    CatchUp catch_up = Make();
    catch_up.Add(Commit(4));
    catch_up.Add(Commit(5));
    ASSERT_TRUE(catch_up.FollowTo(Round(5)).ok());
  }
  EXPECT_THAT(applied_, ElementsAre(4));
  EXPECT_THAT(let_go_, ElementsAre(4, 5));
}

}  // namespace
}  // namespace signvote
