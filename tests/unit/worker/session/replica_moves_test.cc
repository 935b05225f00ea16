#include "worker/session/replica_moves.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class ReplicaMovesTest : public testing::Test {
 protected:
  CommitEvent Step(uint64_t round, VerdictStore::Slot* slot) {
    CommitEvent commit;
    commit.round = Round(round);
    commit.kind = CommitKind::kStep;
    commit.stepsize = 0.5f;
    commit.slot = slot;
    commit.times.committed = Time{77};
    return commit;
  }
  CommitEvent Of(CommitKind kind, uint64_t round) {
    CommitEvent commit;
    commit.round = Round(round);
    commit.kind = kind;
    return commit;
  }
  // The outcome of round `voted`, the replica standing behind it.
  CommitOutcome Outcome(uint64_t voted) {
    return moves_.TakeOutcome(
        Round(voted), Round(voted + 1),
        {.opened = Time{1}, .first_chunk = Time{2}, .ballot_written = Time{3}}, false);
  }
  RoundTicket Ticket() {
    RoundTicket ticket;
    moves_.Tell(&ticket);
    return ticket;
  }

  const PayloadPlan plan_{ChunkPlan(16, 512)};
  VerdictStore::Slot a_{.plan = &plan_, .bits = {1, 2}}, b_{.plan = &plan_, .bits = {3, 4}};
  std::vector<VerdictStore::Slot*> released_;
  ReplicaMoves moves_{[this](VerdictStore::Slot* slot) { released_.push_back(slot); }};
};

TEST_F(ReplicaMovesTest, TheFirstTicketHasNoReplicaBeforeIt) {
  EXPECT_TRUE(Ticket().replica_moved);
  EXPECT_FALSE(Ticket().replica_moved) << "told once";
}

TEST_F(ReplicaMovesTest, TheStepOfTheRoundVotedOnIsContiguousAndBringsItsVerdict) {
  (void)Ticket();
  moves_.Applied(Step(4, &a_), Duration(9));
  const CommitOutcome outcome = Outcome(4);
  EXPECT_TRUE(outcome.contiguous);
  EXPECT_EQ(outcome.commits, 1u);
  EXPECT_EQ(outcome.next_round, Round(5));
  EXPECT_EQ(outcome.stepsize, 0.5f);
  EXPECT_EQ(outcome.verdict, a_.bits.data());
  EXPECT_EQ(outcome.times.apply, Duration(9));
  EXPECT_EQ(outcome.times.committed, Time{77});
  EXPECT_EQ(outcome.times.opened, Time{1});
  EXPECT_EQ(outcome.times.first_chunk, Time{2});
  EXPECT_EQ(outcome.times.ballot_written, Time{3});
  EXPECT_THAT(released_, IsEmpty());
  moves_.ReleaseOutcome();
  moves_.ReleaseOutcome();
  EXPECT_THAT(released_, ElementsAre(&a_));
  EXPECT_FALSE(Ticket().replica_moved) << "it was told with the outcome";
}

TEST_F(ReplicaMovesTest, OfSeveralCommitsTheLastIsToldAndTheVerdictsBeforeAreLetGo) {
  (void)Ticket();
  moves_.Applied(Step(4, &a_), {});
  moves_.Applied(Step(5, &b_), {});
  EXPECT_THAT(released_, ElementsAre(&a_));
  const CommitOutcome outcome = Outcome(4);
  EXPECT_EQ(outcome.commits, 2u);
  EXPECT_FALSE(outcome.contiguous);
  EXPECT_EQ(outcome.verdict, b_.bits.data());
  EXPECT_EQ(outcome.times.opened, Time{}) << "the ballot was of another round";
}

TEST_F(ReplicaMovesTest, ACommitOfAnotherRoundIsAGap) {
  (void)Ticket();
  moves_.Applied(Step(5, &a_), {});
  EXPECT_FALSE(Outcome(4).contiguous);
}

TEST_F(ReplicaMovesTest, AStateTakesThePlaceOfWhatWasBefore) {
  (void)Ticket();
  moves_.Applied(Step(4, &a_), {});
  moves_.Transferred();
  EXPECT_THAT(released_, ElementsAre(&a_));
  const CommitOutcome outcome = Outcome(4);
  EXPECT_EQ(outcome.commits, 0u);
  EXPECT_FALSE(outcome.contiguous);
  EXPECT_EQ(outcome.verdict, nullptr);
  moves_.Transferred();
  moves_.Applied(Step(5, &b_), {});
  EXPECT_FALSE(Outcome(5).contiguous) << "one step, but behind a transfer";
}

TEST_F(ReplicaMovesTest, ARewindIsToldOnceByOutcomeOrTicket) {
  (void)Ticket();
  moves_.Applied(Of(CommitKind::kRewind, 4), {});
  const CommitOutcome outcome = Outcome(4);
  EXPECT_TRUE(outcome.rewound);
  EXPECT_EQ(outcome.kind, CommitKind::kRewind);
  EXPECT_EQ(outcome.verdict, nullptr);
  EXPECT_FALSE(Ticket().rewound);
  moves_.Transferred();
  moves_.Rewound();  // while the state came
  const RoundTicket ticket = Ticket();
  EXPECT_TRUE(ticket.rewound);
  EXPECT_TRUE(ticket.replica_moved);
  EXPECT_FALSE(Outcome(5).rewound);
}

TEST_F(ReplicaMovesTest, RoundsThatWentOnWithoutThisWorkerAreToldByTheTicket) {
  (void)Ticket();
  moves_.Applied(Step(4, &a_), {});
  EXPECT_TRUE(Ticket().replica_moved);
  EXPECT_THAT(released_, ElementsAre(&a_));
  EXPECT_EQ(Outcome(5).commits, 0u);
}

}  // namespace
}  // namespace signvote
