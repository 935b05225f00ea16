#include "server/round/digest_board.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace signvote::round {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<WorkerId> Workers(uint32_t n) {
  std::vector<WorkerId> workers;
  for (uint32_t w = 0; w < n; ++w) workers.push_back(WorkerId(w));
  return workers;
}

TEST(DigestBoardTest, FindsNothingBeforeTheMasterAnswered) {
  DigestBoard board;
  board.Expect(Round(1), Workers(1));
  EXPECT_TRUE(board.AddWorker(Round(1), WorkerId(0), 5));
  EXPECT_THAT(board.Check(Round(1), true).differing, IsEmpty());
  board.AddMaster(Round(1), 6);
  EXPECT_THAT(board.Check(Round(1), true).differing, ElementsAre(WorkerId(0)));
}

TEST(DigestBoardTest, TheFirstAnswerOfAWorkerAndOfTheMasterStands) {
  DigestBoard board;
  board.Expect(Round(1), Workers(1));
  EXPECT_TRUE(board.AddWorker(Round(1), WorkerId(0), 5));
  EXPECT_FALSE(board.AddWorker(Round(1), WorkerId(0), 6));
  board.AddMaster(Round(1), 5);
  board.AddMaster(Round(1), 6);
  EXPECT_THAT(board.Check(Round(1), true).differing, IsEmpty());
}

TEST(DigestBoardTest, AWorkerIsNamedOnce) {
  DigestBoard board;
  board.Expect(Round(1), Workers(1));
  board.AddWorker(Round(1), WorkerId(0), 5);
  board.AddMaster(Round(1), 6);
  EXPECT_EQ(board.Check(Round(1), false).differing.size(), 1u);
  EXPECT_THAT(board.Check(Round(1), false).differing, IsEmpty());
}

TEST(DigestBoardTest, WhoGivesItsReplicaUpIsNotNamedForWhatItHasSaidOfLaterRounds) {
  DigestBoard board;
  for (const uint64_t round : {1, 2, 3}) {
    board.Expect(Round(round), Workers(3));
    for (const uint32_t w : {1u, 2u}) board.AddWorker(Round(round), WorkerId(w), 5);
    board.AddWorker(Round(round), WorkerId(0), 4);
  }
  board.AddMaster(Round(1), 5);
  board.AddMaster(Round(2), 5);
  EXPECT_THAT(board.Check(Round(1), false).differing, ElementsAre(WorkerId(0)));
  board.TakeBack(WorkerId(0));
  board.AddMaster(Round(3), 5);
  for (const uint64_t round : {1, 2, 3})
    EXPECT_THAT(board.Check(Round(round), true).differing, IsEmpty()) << round;
  // What it says of the next replica counts.
  EXPECT_TRUE(board.AddWorker(Round(2), WorkerId(0), 5));
  EXPECT_TRUE(board.AddWorker(Round(3), WorkerId(0), 6));
  EXPECT_THAT(board.Check(Round(2), true).differing, IsEmpty());
  EXPECT_THAT(board.Check(Round(3), true).differing, ElementsAre(WorkerId(0)));
}

TEST(DigestBoardTest, WhatIsTakenBackIsNoPartOfAMajorityAndTheOthersStand) {
  DigestBoard board;
  board.Expect(Round(1), Workers(3));
  board.AddMaster(Round(1), 5);
  board.AddWorker(Round(1), WorkerId(0), 4);
  board.TakeBack(WorkerId(0));
  board.AddWorker(Round(1), WorkerId(1), 4);
  EXPECT_THAT(board.Check(Round(1), true).majority_against_master, IsEmpty());
  board.AddWorker(Round(1), WorkerId(2), 4);
  EXPECT_THAT(board.Check(Round(1), true).majority_against_master,
              ElementsAre(WorkerId(1), WorkerId(2)));
  board.TakeBack(WorkerId(3));  // has said nothing
  EXPECT_EQ(board.Check(Round(1), true).majority_against_master.size(), 2u);
}

TEST(DigestBoardTest, ALaterRoundEndsTheWaitForEarlierAnswers) {
  DigestBoard board;
  board.Expect(Round(1), Workers(3));
  board.AddMaster(Round(1), 6);
  board.AddWorker(Round(1), WorkerId(0), 5);
  EXPECT_THAT(board.Check(Round(1), false).differing, IsEmpty());
  board.Expect(Round(2), Workers(3));
  EXPECT_THAT(board.Check(Round(1), false).differing, ElementsAre(WorkerId(0)));
}

TEST(DigestBoardTest, HalfOfTheWorkersIsNoMajority) {
  DigestBoard board;
  board.Expect(Round(1), Workers(4));
  board.AddMaster(Round(1), 6);
  for (uint32_t w = 0; w < 4; ++w) board.AddWorker(Round(1), WorkerId(w), w < 2 ? 5 : 6);
  const DigestFinding finding = board.Check(Round(1), true);
  EXPECT_THAT(finding.majority_against_master, IsEmpty());
  EXPECT_THAT(finding.differing, ElementsAre(WorkerId(0), WorkerId(1)));
}

TEST(DigestBoardTest, TheMajorityIsOneOfAllWhoWereAsked) {
  DigestBoard board;
  board.Expect(Round(1), Workers(4));
  board.AddMaster(Round(1), 6);
  for (uint32_t w = 0; w < 2; ++w) board.AddWorker(Round(1), WorkerId(w), 5);
  board.AddWorker(Round(1), WorkerId(2), 6);
  board.Expect(Round(2), Workers(4));  // nobody waits for the fourth answer any more
  DigestFinding finding = board.Check(Round(1), false);
  EXPECT_THAT(finding.majority_against_master, IsEmpty());
  EXPECT_THAT(finding.differing, ElementsAre(WorkerId(0), WorkerId(1)));
  board.AddWorker(Round(1), WorkerId(3), 5);  // late, and the majority after all
  finding = board.Check(Round(1), false);
  EXPECT_THAT(finding.majority_against_master, ElementsAre(WorkerId(0), WorkerId(1), WorkerId(3)));
  EXPECT_THAT(finding.differing, IsEmpty());
}

TEST(DigestBoardTest, ThoseWhoAreGoneWereAskedToo) {
  DigestBoard board;
  board.Expect(Round(1), Workers(4));
  board.AddMaster(Round(1), 6);
  for (uint32_t w = 0; w < 2; ++w) board.AddWorker(Round(1), WorkerId(w), 5);
  board.Forget(WorkerId(2));
  EXPECT_THAT(board.Check(Round(1), false).differing, IsEmpty());  // the fourth may decide it
  board.Forget(WorkerId(3));
  EXPECT_THAT(board.Check(Round(1), false).majority_against_master, IsEmpty());
}

TEST(DigestBoardTest, OneWhoWasNotAskedIsComparedAndNoPartOfAMajority) {
  DigestBoard board;
  board.Expect(Round(1), Workers(3));
  board.AddMaster(Round(1), 6);
  board.AddWorker(Round(1), WorkerId(0), 5);
  EXPECT_TRUE(board.AddWorker(Round(1), WorkerId(8), 5));
  EXPECT_TRUE(board.AddWorker(Round(1), WorkerId(9), 5));
  const DigestFinding finding = board.Check(Round(1), true);
  EXPECT_THAT(finding.majority_against_master, IsEmpty());
  EXPECT_THAT(finding.differing, ElementsAre(WorkerId(0), WorkerId(8), WorkerId(9)));
}

TEST(DigestBoardTest, OneAloneIsNoMajority) {
  DigestBoard board;
  board.Expect(Round(1), Workers(1));
  EXPECT_TRUE(board.Expects(Round(1)));
  EXPECT_FALSE(board.Expects(Round(2)));
  board.AddMaster(Round(1), 6);
  EXPECT_TRUE(board.HasMaster(Round(1)));
  EXPECT_FALSE(board.HasMaster(Round(2)));
  board.AddWorker(Round(1), WorkerId(0), 5);
  EXPECT_THAT(board.Check(Round(1), true).majority_against_master, IsEmpty());
}

TEST(DigestBoardTest, KeepsABoundedNumberOfRounds) {
  DigestBoard board;
  for (uint64_t r = 1; r <= 100; ++r) board.Expect(Round(r), Workers(2));
  EXPECT_EQ(board.Rounds().size(), DigestBoard::kRoundsMax);
  EXPECT_FALSE(board.AddWorker(Round(1), WorkerId(0), 1));
}

}  // namespace
}  // namespace signvote::round
