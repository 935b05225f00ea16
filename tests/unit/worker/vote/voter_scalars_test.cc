// Goal:   which numbers go with a ballot, when they can be told and what of a round they are about.
// Method: voter_fixture.h; each number is computed again from the constants.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "tests/unit/worker/vote/voter_fixture.h"

namespace signvote {
namespace {

using testing::ElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST_F(VoterTest, WantedScalarsAreAnsweredInTheOrderOfTheTicket) {
  run_.needs_x0 = true;
  ASSERT_TRUE(replica_.KeepX0().ok());
  ASSERT_TRUE(replica_.WriteX0(0, std::vector<float>(kD, 3.0f)).ok());
  Make();
  VoteRound(Ticket(0), Step(verdict_.data()));
  RoundTicket ticket = Ticket(1);
  ticket.wanted = {ScalarKind::kX0Distance, ScalarKind::kProbeL1, ScalarKind::kLocalInner,
                   ScalarKind::kX0Inner, ScalarKind::kPrevInner};
  VoteRound(ticket, Step(verdict_.data(), 2));
  ASSERT_EQ(session_.scalars.wanted.size(), 5u);
  EXPECT_EQ(session_.scalars.wanted[0], std::sqrt(1500.0 * 4.0));
  EXPECT_EQ(session_.scalars.wanted[1], 1500.0 * 0.25);
  EXPECT_TRUE(std::isnan(session_.scalars.wanted[2]));
  EXPECT_EQ(session_.scalars.wanted[3], 1500.0 * 2.0);
  EXPECT_EQ(session_.scalars.wanted[4], 300.0 + 2 * 700.0 + 500.0);
}

TEST_F(VoterTest, TheProbesInnerProductIsThatOfHWithThePreviousVerdictAndTouchesNoState) {
  // b is +1 on even coordinates and −1 on the others; h grows with the coordinate.
  for (size_t i = 0; i < verdict_.size(); ++i) verdict_[i] = 0x55;
  for (uint64_t i = 0; i < kD; ++i) h_[i] = static_cast<float>(i);
  double inner = 0;
  for (const TensorSpec& tensor : run_.layout.tensors()) {
    for (uint64_t i = tensor.first; i < tensor.first + tensor.count; ++i)
      inner += double{tensor.step_scale} * h_[i] * (i % 2 == 0 ? 1 : -1);
  }
  const auto vote = [&](std::vector<ScalarKind> wanted) {
    Make();
    VoteRound(Ticket(0), Step(verdict_.data()));
    RoundTicket ticket = Ticket(1);
    ticket.wanted = std::move(wanted);
    VoteRound(ticket, Step(verdict_.data(), 2));
    return std::pair(session_.scalars.wanted, session_.ballots);
  };
  // With an envelope what is signed depends on what was signed before.
  for (const Envelope envelope : {Envelope::kNone, Envelope::kCoordinate, Envelope::kTensor}) {
    run_.direction.envelope = envelope;
    const auto [scalars, bits] = vote({ScalarKind::kPrevInner, ScalarKind::kProbeInner});
    EXPECT_EQ(scalars.at(1), inner);
    // g is 1 everywhere; the tensors of 300, 700 and 500 have as many +1 as −1.
    EXPECT_EQ(scalars.at(0), 0.0);
    const auto [none, without] = vote({});
    EXPECT_EQ(bits, without) << "the ballot is the same with and without it";
  }
}

TEST_F(VoterTest, WhereTheProbeIsNotWholeItsInnerProductCannotBeTold) {
  for (const bool missing : {false, true}) {
    Make();
    VoteRound(Ticket(0), Step(verdict_.data()));
    RoundTicket ticket = Ticket(1);
    ticket.wanted = {ScalarKind::kProbeInner};
    ASSERT_TRUE(voter_->Begin(ticket).ok());
    std::vector<const float*> h = Pointers(h_);
    if (missing) {
      h[1] = nullptr;
    } else {
      h_[77] = kNan;
    }
    ASSERT_TRUE(voter_->SetProbe(h).ok());
    ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
    ASSERT_TRUE(voter_->GradientReady(0, kD).ok());
    EXPECT_FALSE(voter_->Finish(1, 1)->probe_inner.has_value());
    EXPECT_TRUE(std::isnan(session_.scalars.wanted.at(0)));
    h_[77] = 0.75f;
  }
}

TEST_F(VoterTest, TheChangeIsThatOfTheGradientSinceTheRoundBefore) {
  run_.probes = false;
  run_.keeps_gradients = true;
  Make({.can_keep_gradient = true});
  ASSERT_TRUE(voter_->keeps_gradient());
  std::vector<float> kept;
  const auto vote = [&](uint64_t round, const CommitOutcome& outcome) {
    RoundTicket ticket = Ticket(round);
    ticket.wanted = {ScalarKind::kChangeL1};
    EXPECT_TRUE(voter_->Begin(ticket).ok());
    EXPECT_FALSE(voter_->wants_probe());
    if (voter_->wants_change()) {
      EXPECT_TRUE(voter_->SetLastGradient(Pointers(kept)).ok());
    }
    EXPECT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
    EXPECT_TRUE(voter_->GradientReady(0, kD).ok());
    const auto sent = voter_->Finish(2.5, 8);
    EXPECT_TRUE(sent.ok());
    EXPECT_FALSE(sent->probe_l1.has_value());
    kept = g_;
    EXPECT_TRUE(voter_->GradientKept().ok());
    session_.outcome = outcome;
    EXPECT_TRUE(voter_->Wait().ok());
    return session_.scalars.wanted.at(0);
  };
  EXPECT_TRUE(std::isnan(vote(0, Step(verdict_.data()))));
  std::fill(g_.begin(), g_.end(), 1.5f);
  EXPECT_EQ(vote(1, Step(verdict_.data(), 2)), 0.5 * kD);
  // A round that moved nothing lies between: not one step's change.
  CommitOutcome none = Step(nullptr, 3);
  none.kind = CommitKind::kNone;
  std::fill(g_.begin(), g_.end(), 2.0f);
  EXPECT_EQ(vote(2, none), 0.5 * kD);
  EXPECT_TRUE(std::isnan(vote(3, Step(verdict_.data(), 4))));
  EXPECT_EQ(vote(4, Step(verdict_.data(), 5)), 0.0);
}

TEST_F(VoterTest, AGradientThatWasWithdrawnIsNotComparedWith) {
  run_.keeps_gradients = true;
  Make({.can_keep_gradient = true});
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  EXPECT_EQ(voter_->SetLastGradient(Pointers(g_)).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(voter_->Abstain(AbstainReason::kOther).ok());
  ASSERT_TRUE(voter_->GradientKept().ok());
  session_.outcome = Step(verdict_.data());
  ASSERT_TRUE(voter_->Wait().ok());
  RoundTicket ticket = Ticket(1);
  ticket.wanted = {ScalarKind::kChangeL1};
  ASSERT_TRUE(voter_->Begin(ticket).ok());
  EXPECT_FALSE(voter_->wants_change());
}

TEST_F(VoterTest, TheLargestAndTheSmallestCoordinateAreTold) {
  Make();
  g_[5] = 7;
  g_[900] = -3;
  RoundTicket ticket = Ticket(0);
  ticket.wanted = {ScalarKind::kGradientMin, ScalarKind::kGradientMax};
  VoteRound(ticket, Step(verdict_.data()));
  EXPECT_THAT(session_.scalars.wanted, ElementsAre(-3.0, 7.0));
}

TEST_F(VoterTest, WhatCannotBeToldIsNaN) {
  Make();
  RoundTicket ticket = Ticket(0);
  ticket.wanted = {ScalarKind::kProbeL1, ScalarKind::kPrevInner, ScalarKind::kX0Inner,
                   ScalarKind::kX0Distance};
  const SentBallot sent = VoteRound(ticket, Step(verdict_.data()));
  ASSERT_EQ(session_.scalars.wanted.size(), 4u);
  for (const double value : session_.scalars.wanted) EXPECT_TRUE(std::isnan(value));
  EXPECT_FALSE(sent.probe_l1.has_value());
  EXPECT_FALSE(sent.prev_inner.has_value());
}

TEST_F(VoterTest, TheProbeIsWantedOnlyWhereTheRoundTheRunAndTheCallerAllow) {
  Make();
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  EXPECT_FALSE(voter_->wants_probe()) << "no previous replica";
  ASSERT_TRUE(voter_->Abstain(AbstainReason::kOther).ok());
  ASSERT_TRUE(voter_->PreviousKept().ok());
  session_.outcome = Step(verdict_.data());
  ASSERT_TRUE(voter_->Wait().ok());
  RoundTicket ticket = Ticket(1);
  ticket.wanted = {ScalarKind::kPrevInner};
  ASSERT_TRUE(voter_->Begin(ticket).ok());
  EXPECT_FALSE(voter_->wants_probe()) << "the round does not";
  EXPECT_EQ(voter_->SetProbe(Pointers(h_)).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(voter_->Abstain(AbstainReason::kOther).ok());
  ASSERT_TRUE(voter_->Wait().ok());
  ASSERT_TRUE(voter_->Begin(Ticket(2)).ok());
  EXPECT_FALSE(voter_->wants_probe()) << "x_1 was not kept";

  Make({.can_probe = false});
  EXPECT_FALSE(voter_->keeps_previous());
  VoteRound(Ticket(0), Step(verdict_.data()));
  ASSERT_TRUE(voter_->Begin(Ticket(1)).ok());
  EXPECT_FALSE(voter_->wants_probe()) << "the caller cannot";
  run_.probes = false;
  Make();
  EXPECT_FALSE(voter_->keeps_previous());
}

// Each thing that may have moved the replica between two ballots, and what may be used after it.
TEST_F(VoterTest, PreviousReplicaAndVerdictOutliveExactlyOneStepInOrder) {
  struct Case {
    const char* what;
    CommitOutcome outcome;
    bool moved = false, rewound = false;  // what the next ticket says
    bool usable = false;
  };
  const CommitOutcome step = Step(verdict_.data());
  std::vector<Case> cases = {{"a step", step, false, false, true},
                             {"a step, then a fetched state", step, true, false, false},
                             {"a step, then a rewind elsewhere", step, true, true, false}};
  CommitOutcome other = step;
  other.contiguous = false;
  cases.push_back({"a step after a gap", other});
  other = step;
  other.commits = 2;
  cases.push_back({"two steps", other});
  other = step;
  other.kind = CommitKind::kNone;
  other.verdict = nullptr;
  cases.push_back({"none", other});
  other.kind = CommitKind::kRewind;
  other.rewound = true;
  cases.push_back({"a rewind", other});
  cases.push_back({"a fetched state", {.commits = 0, .contiguous = false}});
  other = step;
  other.rewound = true;
  other.commits = 2;
  cases.push_back({"a rewind and a step", other});
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    Make();
    VoteRound(Ticket(0), c.outcome);
    RoundTicket ticket = Ticket(1);
    ticket.replica_moved = c.moved;
    ticket.rewound = c.rewound;
    const SentBallot sent = VoteRound(ticket, Step(verdict_.data()));
    EXPECT_EQ(sent.probe_l1.has_value(), c.usable);
    EXPECT_EQ(sent.prev_inner.has_value(), c.usable);
    EXPECT_EQ(std::isnan(session_.scalars.wanted.at(0)), !c.usable);
  }
}

}  // namespace
}  // namespace signvote
