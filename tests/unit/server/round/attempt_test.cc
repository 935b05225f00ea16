#include "server/round/attempt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace signvote::round {
namespace {

using testing::ElementsAre;

constexpr Time kNow = Time{} + std::chrono::seconds(3);

// Three members 2, 5 and 9 and the observer 7, two chunks; nothing is in.
OpenAttempt Attempted() {
  OpenAttempt open;
  open.round = Round(4);
  open.attempt = Attempt(1);
  open.members = 3;
  open.closed.assign(2, false);
  open.counted.assign(2, 0);
  for (const uint32_t id : {2u, 5u, 7u, 9u}) {
    SeatState seat;
    seat.seat = {.worker = WorkerId(id), .role = id == 7 ? Role::kObserver : Role::kMember};
    seat.ballot.in.assign(2, false);
    open.seats.push_back(seat);
  }
  return open;
}

void Vote(OpenAttempt* open, uint32_t id, uint32_t chunk) {
  Ballot& ballot = open->Find(WorkerId(id))->ballot;
  ballot.in[chunk] = true;
  ++ballot.in_count;
}

void Say(OpenAttempt* open, uint32_t id, double loss, double l1, double l2_squared) {
  open->Find(WorkerId(id))->ballot.scalars =
      WorkerScalars{.loss = loss, .g_l1 = l1, .g_l2_squared = l2_squared};
}

TEST(OpenAttemptTest, FindsSeatsByWorker) {
  OpenAttempt open = Attempted();
  for (const uint32_t id : {2u, 5u, 7u, 9u}) {
    ASSERT_NE(open.Find(WorkerId(id)), nullptr);
    EXPECT_EQ(open.Find(WorkerId(id))->seat.worker, WorkerId(id));
  }
  for (const uint32_t id : {0u, 6u, 10u}) EXPECT_EQ(open.Find(WorkerId(id)), nullptr);
}

TEST(OpenAttemptTest, AChunkCountsTheMembersWhoseBallotOfItIsIn) {
  OpenAttempt open = Attempted();
  Vote(&open, 9, 1);
  Vote(&open, 2, 1);
  Vote(&open, 5, 0);
  Vote(&open, 7, 1);  // an observer is not counted
  const CloseChunk closed = open.Close(ChunkIndex(1), kNow);
  EXPECT_EQ(closed.round, Round(4));
  EXPECT_EQ(closed.attempt, Attempt(1));
  EXPECT_EQ(closed.chunk, ChunkIndex(1));
  EXPECT_THAT(closed.voters, ElementsAre(WorkerId(2), WorkerId(9)));
  EXPECT_THAT(open.counted, ElementsAre(0, 2));
  EXPECT_EQ(open.last_closed, kNow);
  EXPECT_FALSE(open.AllClosed());
  (void)open.Close(ChunkIndex(0), kNow);
  EXPECT_TRUE(open.AllClosed());
}

TEST(OpenAttemptDeathTest, AChunkIsClosedOnce) {
  OpenAttempt open = Attempted();
  (void)open.Close(ChunkIndex(0), kNow);
  EXPECT_DEATH((void)open.Close(ChunkIndex(0), kNow), "closed");
}

TEST(OpenAttemptTest, TheSummaryNamesVotersAbstentionsAndTheMeansOfWhatTheVotersSaid) {
  OpenAttempt open = Attempted();
  Vote(&open, 2, 0);
  Vote(&open, 5, 1);
  Say(&open, 2, 1.0, 10, 50);
  Say(&open, 5, 3.0, 30, 0);     // no gradient at all: it has no density
  Say(&open, 9, 100, 100, 100);  // counted in no chunk: not among the scalars
  Say(&open, 7, 100, 100, 100);  // nor is an observer
  (void)open.Close(ChunkIndex(0), kNow);
  (void)open.Close(ChunkIndex(1), kNow);
  const CommitRound commit = open.Summary(20);
  EXPECT_EQ(commit.round, Round(4));
  EXPECT_EQ(commit.attempt, Attempt(1));
  EXPECT_EQ(commit.data_step, DataStep(4));
  EXPECT_EQ(commit.members, 3u);
  EXPECT_EQ(commit.abstentions, 1u);
  EXPECT_THAT(commit.voters, ElementsAre(WorkerId(2), WorkerId(5)));
  EXPECT_THAT(commit.counted, ElementsAre(1, 1));
  ASSERT_EQ(commit.scalars.size(), 2u);
  EXPECT_EQ(commit.scalars[1].first, WorkerId(5));
  EXPECT_EQ(commit.loss, 2.0);
  EXPECT_EQ(commit.g_l1, 20.0);
  EXPECT_EQ(commit.density, 10.0 * 10.0 / (20 * 50.0));
}

TEST(OpenAttemptTest, WithoutScalarsThereAreNoMeans) {
  OpenAttempt open = Attempted();
  for (uint32_t k = 0; k < 2; ++k) {
    Vote(&open, 2, k);
    (void)open.Close(ChunkIndex(k), kNow);
  }
  const CommitRound commit = open.Summary(20);
  EXPECT_EQ(commit.abstentions, 2u);
  EXPECT_FALSE(commit.loss.has_value());
  EXPECT_FALSE(commit.g_l1.has_value());
  EXPECT_FALSE(commit.density.has_value());
}

}  // namespace
}  // namespace signvote::round
