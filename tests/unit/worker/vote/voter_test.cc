// Goal:   what a Voter sends and forgets, round by round, without a model and without a server.
// Method: gradients are constants that the test writes; the session answers what the test sets.
#include "worker/vote/voter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/bits.h"
#include "common/coin.h"
#include "tests/unit/worker/vote/fake_session.h"

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kD = 1500;  // chunks of 512: 0..511, 512..1023, 1024..1499
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

RunInfo TestRun() {
  RunInfo run;
  run.seed = 7;
  run.layout = *Layout::Make({{.name = "a", .shape = {300}},
                              {.name = "b", .shape = {700}, .step_scale = 2.0f},
                              {.name = "c", .shape = {500}}});
  run.plan = ChunkPlan(kD, 512);
  run.direction.kind = DirectionKind::kSignum;
  run.probes = true;
  return run;
}

CommitOutcome Step(const uint8_t* verdict, uint64_t next_round = 1) {
  return {.next_round = Round(next_round),
          .commits = 1,
          .contiguous = true,
          .kind = CommitKind::kStep,
          .stepsize = 0.25f,
          .verdict = verdict};
}

// A source of displacements: y goes down each gradient by η, and the way from the start is signed.
class DisplacementSource : public BallotSource {
 public:
  explicit DisplacementSource(const Layout* layout) : layout_(layout), y_(kD), u_(kD) {
    u_pointers_ = PointersInto<const float>(*layout, u_.data());
  }
  uint32_t Gradients(const RoundTicket& ticket) const override { return ticket.local_steps; }
  absl::Status Begin(const RoundTicket& ticket) override {
    eta_ = ticket.eta_first;
    std::fill(y_.begin(), y_.end(), 0.0f);
    std::fill(u_.begin(), u_.end(), kNan);  // nothing may be signed before it is made
    taken.clear();
    return begin_status;
  }
  absl::Status TakeGradient(uint32_t index, ConstTensorPointers g) override {
    taken.push_back(index);
    GoDown(0, kD, g);
    return absl::OkStatus();
  }
  absl::Status MakeChunk(uint64_t first, uint64_t count, ConstTensorPointers g) override {
    GoDown(first, count, g);
    for (uint64_t i = first; i < first + count; ++i) u_[i] = -y_[i];
    return absl::OkStatus();
  }
  ConstTensorPointers u() const override { return u_pointers_; }
  absl::Status Reset() override {
    ++resets;
    return absl::OkStatus();
  }
  double Scalar(ScalarKind kind) const override {
    return kind == ScalarKind::kLocalInner ? 11.0 : 12.0;
  }
  std::span<const float> displacement_mean() const override { return means_; }

  absl::Status begin_status;
  std::vector<uint32_t> taken;
  int resets = 0;

 private:
  void GoDown(uint64_t first, uint64_t count, ConstTensorPointers g) {
    ForEachTensorRange(*layout_, first, count, [&](const TensorRange& range) {
      if (g[range.tensor] == nullptr) return;
      for (uint64_t i = 0; i < range.count; ++i)
        y_[range.first + i] -= eta_ * g[range.tensor][range.offset + i];
    });
  }

  const Layout* const layout_;
  std::vector<float> y_, u_;
  std::vector<const float*> u_pointers_;
  const std::vector<float> means_ = {0.5f, 0.25f, 0.125f};
  float eta_ = 0;
};

class VoterTest : public testing::Test {
 protected:
  VoterTest()
      : x_(kD, 1.0f), g_(kD, 1.0f), h_(kD, 0.75f), replica_(x_), verdict_(BytesForBits(kD), 0xFF) {
    session_.plan = run_.plan;
  }
  void Make(VoterOptions options = {.can_probe = true}, BallotSource* source = nullptr) {
    auto voter = Voter::Make(run_, &session_, &replica_, &device_,
                             source == nullptr ? &gradient_source_ : source, Clock::System(),
                             std::move(options));
    ASSERT_TRUE(voter.ok()) << Describe(voter.status());
    voter_ = *std::move(voter);
  }
  std::vector<const float*> Pointers(const std::vector<float>& values) {
    return PointersInto<const float>(run_.layout, values.data());
  }
  RoundTicket Ticket(uint64_t round) const {
    return {.round = Round(round),
            .data_step = DataStep(round),
            .share = Share(3),
            .wanted = {ScalarKind::kPrevInner, ScalarKind::kProbeL1}};
  }
  // A ballot from opening to commit, in which everything goes well.
  SentBallot VoteRound(const RoundTicket& ticket, const CommitOutcome& outcome) {
    EXPECT_TRUE(voter_->Begin(ticket).ok());
    if (voter_->wants_probe()) {
      EXPECT_TRUE(voter_->SetProbe(Pointers(h_)).ok());
    }
    EXPECT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
    EXPECT_TRUE(voter_->GradientReady(0, kD).ok());
    const auto sent = voter_->Finish(2.5, 8);
    EXPECT_TRUE(sent.ok()) << sent.status();
    if (voter_->keeps_previous()) {
      EXPECT_TRUE(voter_->PreviousKept().ok());
    }
    session_.outcome = outcome;
    EXPECT_TRUE(voter_->Wait().ok());
    return *sent;
  }
  std::vector<float> State() {
    std::vector<float> state(kD);
    EXPECT_TRUE(voter_->packer()->SaveState(0, 0, std::as_writable_bytes(std::span(state))).ok());
    return state;
  }

  RunInfo run_ = TestRun();
  std::vector<float> x_, g_, h_;
  HostReplicaMemory replica_;
  HostDevice device_;
  FakeSession session_;
  GradientSource gradient_source_;
  std::vector<uint8_t> verdict_;
  std::unique_ptr<Voter> voter_;
};

// What a checkpoint names wrongly is its caller's to know, and ends nobody's process.
TEST_F(VoterTest, AStateThatTheDirectionDoesNotHaveIsRefusedAndTheVoterGoesOn) {
  Make();
  std::vector<float> state(kD + 1);
  const auto bytes = std::as_writable_bytes(std::span(state));
  EXPECT_EQ(voter_->packer()->SaveState(1, 0, bytes.first(4)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(voter_->packer()->RestoreState(0, 0, bytes).code(), absl::StatusCode::kInvalidArgument);
  (void)VoteRound(Ticket(0), Step(verdict_.data()));
}

TEST_F(VoterTest, ASourceThatTakesNoGradientIsRefused) {
  class NoGradient : public GradientSource {
   public:
    uint32_t Gradients(const RoundTicket&) const override { return 0; }
  } source;
  Make({}, &source);
  EXPECT_EQ(voter_->Begin(Ticket(0)).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(VoterTest, EachChunkLeavesAsSoonAsItsGradientIsFinal) {
  Make();
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  ASSERT_TRUE(voter_->GradientReady(1000, 500).ok());  // c: chunk 1 still lacks b
  EXPECT_THAT(session_.events, ElementsAre("chunk 2") /* 1024.. is c's alone */);
  ASSERT_TRUE(voter_->GradientReady(300, 700).ok());
  EXPECT_THAT(session_.events, ElementsAre("chunk 2", "chunk 1"));
  ASSERT_TRUE(voter_->GradientReady(0, 300).ok());
  EXPECT_THAT(session_.events, ElementsAre("chunk 2", "chunk 1", "chunk 0"));
  const auto sent = voter_->Finish(2.5, 8);
  ASSERT_TRUE(sent.ok());
  EXPECT_EQ(session_.events.back(), "scalars");
  EXPECT_TRUE(sent->first_chunk_overlapped);
  EXPECT_TRUE(sent->first_chunk.has_value());
  EXPECT_FALSE(sent->abstained.has_value());
  EXPECT_EQ(session_.scalars.loss, 2.5);
  EXPECT_EQ(session_.scalars.samples, 8u);
  EXPECT_EQ(session_.scalars.g_l1, 1500.0);
  EXPECT_EQ(session_.scalars.g_l2_squared, 1500.0);
  for (uint64_t i = 0; i < kD; ++i) ASSERT_TRUE(GetBit(session_.ballots.data(), i)) << i;
}

// Goal: the next ballot must not be packed over one that a slow network still sends.
TEST_F(VoterTest, ABallotThatIsStillBeingSentIsNotChangedByTheNext) {
  session_.keep_sent = true;
  Make();
  VoteRound(Ticket(0), Step(verdict_.data()));
  const std::vector<std::shared_ptr<const uint8_t>> first = std::exchange(session_.unsent, {});
  ASSERT_EQ(first.size(), run_.plan.chunks());
  const std::vector<uint8_t> sent = session_.ballots;
  const auto unchanged = [&] {
    for (uint32_t i = 0; i < first.size(); ++i) {
      // High chunks leave first.
      const ChunkIndex k(static_cast<uint32_t>(first.size()) - 1 - i);
      if (!std::equal(first[i].get(), first[i].get() + run_.plan.Bytes(k),
                      sent.begin() + static_cast<ptrdiff_t>(run_.plan.ByteOffset(k)))) {
        return false;
      }
    }
    return true;
  };
  ASSERT_TRUE(unchanged());
  g_.assign(kD, -100.0f);  // the other sign
  VoteRound(Ticket(1), Step(verdict_.data()));
  EXPECT_NE(session_.ballots, sent);
  EXPECT_TRUE(unchanged());
}

TEST_F(VoterTest, ARangeMayBeOfAnySizeAndCrossTensors) {
  Make();
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  for (uint64_t at = 0; at < kD; at += 17)
    ASSERT_TRUE(voter_->GradientReady(at, std::min<uint64_t>(17, kD - at)).ok());
  ASSERT_TRUE(voter_->GradientReady(kD, 0).ok());
  EXPECT_THAT(session_.events, ElementsAre("chunk 0", "chunk 1", "chunk 2"));
  EXPECT_TRUE(voter_->Finish(1.0, 1).ok());
}

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
  const auto [scalars, bits] = vote({ScalarKind::kPrevInner, ScalarKind::kProbeInner});
  EXPECT_EQ(scalars.at(1), inner);
  // g is 1 everywhere; the tensors of 300, 700 and 500 have as many +1 as −1.
  EXPECT_EQ(scalars.at(0), 0.0);
  const auto [none, without] = vote({});
  EXPECT_EQ(bits, without) << "the ballot is the same with and without it";
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

TEST_F(VoterTest, ARewindZeroesTheDirectionsStateAndNothingElseDoes) {
  for (const auto& [kind, by_ticket] :
       {std::pair(CommitKind::kStep, false), std::pair(CommitKind::kNone, false),
        std::pair(CommitKind::kRewind, false), std::pair(CommitKind::kStep, true)}) {
    SCOPED_TRACE(std::string(Words(kind)));
    Make();
    CommitOutcome outcome = Step(kind == CommitKind::kStep ? verdict_.data() : nullptr);
    outcome.kind = kind;
    outcome.rewound = kind == CommitKind::kRewind;
    VoteRound(Ticket(0), outcome);
    std::vector<float> before = State();
    EXPECT_EQ(before[0] == 0.0f, outcome.rewound);
    if (!by_ticket) continue;
    RoundTicket ticket = Ticket(1);
    ticket.replica_moved = ticket.rewound = true;
    ASSERT_TRUE(voter_->Begin(ticket).ok());
    EXPECT_EQ(State(), std::vector<float>(kD, 0.0f));
  }
}

TEST_F(VoterTest, ANonFiniteGradientWithdrawsWhatHasNotLeftButItsStateGoesOn) {
  Make();
  g_[600] = kNan;  // chunk 1
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  for (const auto& [first, count] : {std::pair(1000, 500), std::pair(300, 700), std::pair(0, 300)})
    ASSERT_TRUE(
        voter_->GradientReady(static_cast<uint64_t>(first), static_cast<uint64_t>(count)).ok());
  const auto sent = voter_->Finish(1.0, 1);
  ASSERT_TRUE(sent.ok());
  EXPECT_THAT(session_.events, ElementsAre("chunk 2", "abstain: non-finite gradient"));
  EXPECT_EQ(sent->abstained, AbstainReason::kNonFiniteGradient);
  EXPECT_EQ(sent->scalars.nonfinite_coordinates, 1u);
  const std::vector<float> state = State();
  EXPECT_GT(state[0], 0.0f);
  EXPECT_EQ(state[600], 0.0f);
  session_.outcome = Step(verdict_.data());
  EXPECT_TRUE(voter_->Wait().ok());
}

TEST_F(VoterTest, AProbeThatIsNotFiniteIsLeftOutAndTheBallotStands) {
  Make();
  VoteRound(Ticket(0), Step(verdict_.data()));
  std::vector<float> h = g_;
  h[600] = kNan;
  ASSERT_TRUE(voter_->Begin(Ticket(1)).ok());
  ASSERT_TRUE(voter_->wants_probe());
  ASSERT_TRUE(voter_->SetProbe(Pointers(h)).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  ASSERT_TRUE(voter_->GradientReady(0, kD).ok());
  const auto sent = voter_->Finish(1.0, 1);
  ASSERT_TRUE(sent.ok());
  EXPECT_FALSE(sent->abstained.has_value());
  EXPECT_FALSE(sent->probe_l1.has_value());
  EXPECT_TRUE(std::isnan(session_.scalars.wanted.at(1)));
  EXPECT_TRUE(sent->prev_inner.has_value());
}

TEST_F(VoterTest, ANonFiniteLossIsAnAbstention) {
  Make();
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  ASSERT_TRUE(voter_->GradientReady(0, kD).ok());
  const auto sent = voter_->Finish(static_cast<double>(kNan), 1);
  ASSERT_TRUE(sent.ok());
  EXPECT_EQ(sent->abstained, AbstainReason::kNonFiniteLoss);
  EXPECT_EQ(session_.events.back(), "abstain: non-finite loss");
}

TEST_F(VoterTest, AnAbstentionMayComeBeforeAnyGradient) {
  Make();
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  ASSERT_TRUE(voter_->Abstain(AbstainReason::kNonFiniteLoss).ok());
  EXPECT_THAT(session_.events, ElementsAre("abstain: non-finite loss"));
  session_.outcome = Step(verdict_.data());
  ASSERT_TRUE(voter_->Wait().ok());
  EXPECT_TRUE(voter_->Begin(Ticket(1)).ok());
}

TEST_F(VoterTest, ATensorThatNeverBecomesReadyOrHasNoPointerCastsCoins) {
  for (const bool null : {false, true}) {
    Make();
    session_.events.clear();
    ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
    std::vector<const float*> pointers = Pointers(g_);
    if (null) pointers[1] = nullptr;
    ASSERT_TRUE(voter_->SetGradient(pointers).ok());
    ASSERT_TRUE(voter_->GradientReady(1000, 500).ok());
    ASSERT_TRUE(voter_->GradientReady(0, 300).ok());
    EXPECT_THAT(session_.events, ElementsAre("chunk 2"));
    ASSERT_TRUE(voter_->Finish(1.0, 1).ok());
    EXPECT_THAT(session_.events, ElementsAre("chunk 2", "chunk 1", "chunk 0", "scalars"));
    EXPECT_EQ(session_.scalars.g_l1, 800.0);
    for (uint64_t i = 0; i < kD; ++i) {
      const bool coin = ((OwnCoinWord(7, Round(0), Share(3), i / 64) >> (i % 64)) & 1u) != 0;
      ASSERT_EQ(GetBit(session_.ballots.data(), i), i < 300 || i >= 1000 || coin) << i;
    }
    const std::vector<float> state = State();
    EXPECT_EQ(state[299] != 0.0f, true);
    EXPECT_EQ(state[300], 0.0f);
    EXPECT_EQ(state[999], 0.0f);
  }
}

TEST_F(VoterTest, CallsThatDoNotFitAreRefusedAndChangeNothing) {
  Make();
  EXPECT_EQ(voter_->GradientReady(0, 1).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(voter_->Finish(1.0, 1).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(voter_->Wait().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(voter_->PreviousKept().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(voter_->Abstain(AbstainReason::kOther).status().code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  EXPECT_EQ(voter_->Begin(Ticket(0)).code(), absl::StatusCode::kFailedPrecondition);
  std::vector<const float*> two(2, g_.data());
  EXPECT_EQ(voter_->SetGradient(two).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  EXPECT_EQ(voter_->EndGradient(1.0, 1).code(), absl::StatusCode::kFailedPrecondition)
      << "it is the last";
  EXPECT_EQ(voter_->GradientReady(kD, 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(voter_->GradientReady(1, ~uint64_t{0}).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(voter_->GradientReady(0, 400).ok());
  const absl::Status twice = voter_->GradientReady(200, 101);
  EXPECT_EQ(twice.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(twice.message()), HasSubstr("tensor \"a\" became ready twice"));
  const absl::Status half = voter_->Finish(1.0, 1).status();
  EXPECT_EQ(half.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(half.message()), HasSubstr("tensor \"b\" is final on 100 of its 700"));
  EXPECT_THAT(session_.events, IsEmpty());
  ASSERT_TRUE(voter_->GradientReady(400, 1100).ok());
  EXPECT_TRUE(voter_->Finish(1.0, 1).ok());
  EXPECT_EQ(session_.scalars.g_l1, 1500.0);
}

TEST_F(VoterTest, WhatTheSessionRefusesEndsTheBallotWithItsStatus) {
  Make();
  session_.send_status = absl::UnavailableError("server gone");
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  EXPECT_EQ(voter_->GradientReady(1000, 500), session_.send_status);
  EXPECT_EQ(voter_->GradientReady(0, 300), session_.send_status);
  EXPECT_EQ(voter_->Finish(1.0, 1).status(), session_.send_status);
  EXPECT_THAT(session_.events, ElementsAre("chunk 2"));
  session_.send_status = absl::OkStatus();
  session_.scalars_status = absl::AbortedError("no");
  Make();
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  ASSERT_TRUE(voter_->GradientReady(0, kD).ok());
  EXPECT_EQ(voter_->Finish(1.0, 1).status(), absl::AbortedError("no"));
  EXPECT_EQ(voter_->Wait().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(VoterTest, ABallotOfSeveralGradientsSignsTheWayThatTheyWent) {
  DisplacementSource source(&run_.layout);
  Make({}, &source);
  RoundTicket ticket = Ticket(0);
  ticket.local_steps = 3;
  ticket.eta_first = 1.0f;
  ticket.wanted = {ScalarKind::kLocalProduct, ScalarKind::kLocalInner, ScalarKind::kProbeL1};
  ASSERT_TRUE(voter_->Begin(ticket).ok());
  EXPECT_EQ(voter_->gradients(), 3u);
  // 1 + 1 − 3: the last gradient is negative, and so is the sum.
  for (int h = 0; h < 2; ++h) {
    ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
    ASSERT_TRUE(voter_->GradientReady(0, kD).ok());
    EXPECT_EQ(voter_->Finish(1.0, 1).status().code(), absl::StatusCode::kFailedPrecondition)
        << "it is not the last";
    ASSERT_TRUE(voter_->EndGradient(h + 1.0, 4).ok());
    EXPECT_THAT(session_.events, IsEmpty()) << "nothing leaves before the last gradient";
  }
  std::vector<float> last(kD, -3.0f);
  for (uint64_t i = 0; i < 300; ++i) last[i] = -1.5f;  // tensor a: 1 + 1 − 1.5 is positive
  ASSERT_TRUE(voter_->SetGradient(Pointers(last)).ok());
  ASSERT_TRUE(voter_->GradientReady(1000, 500).ok());
  EXPECT_THAT(session_.events, ElementsAre("chunk 2"));
  ASSERT_TRUE(voter_->GradientReady(0, 1000).ok());
  ASSERT_TRUE(voter_->Finish(6.0, 4).ok());
  EXPECT_THAT(source.taken, ElementsAre(0u, 1u));
  for (uint64_t i = 0; i < kD; ++i) ASSERT_EQ(GetBit(session_.ballots.data(), i), i < 300) << i;
  EXPECT_EQ(session_.scalars.loss, 3.0);  // the mean of the three
  EXPECT_EQ(session_.scalars.samples, 12u);
  EXPECT_EQ(session_.scalars.wanted.at(0), 12.0);
  EXPECT_EQ(session_.scalars.wanted.at(1), 11.0);
  EXPECT_TRUE(std::isnan(session_.scalars.wanted.at(2)));
  EXPECT_THAT(session_.scalars.displacement_mean, ElementsAre(0.5f, 0.25f, 0.125f));
  CommitOutcome rewind{.commits = 1, .rewound = true, .kind = CommitKind::kRewind};
  session_.outcome = rewind;
  ASSERT_TRUE(voter_->Wait().ok());
  EXPECT_EQ(source.resets, 1);
}

TEST_F(VoterTest, WhatTheSourceCannotDoEndsTheBallotBeforeItBegins) {
  Make();
  RoundTicket ticket = Ticket(0);
  ticket.local_steps = 2;
  EXPECT_EQ(voter_->Begin(ticket).code(), absl::StatusCode::kUnimplemented);
  EXPECT_TRUE(voter_->Begin(Ticket(0)).ok());
}

// Parameters that are other memory than the replica: they are its copy whenever gradients are taken.
TEST_F(VoterTest, CopiesFollowTheReplicaWheneverItHasMoved) {
  std::vector<float> parameters(kD, 0.0f);
  std::vector<float*> pointers = PointersInto(run_.layout, parameters.data());
  HostReplicaCopy copy(&run_.layout, pointers);
  Make({.can_probe = true, .copies = {&copy}});
  RoundTicket first = Ticket(0);
  first.replica_moved = true;  // as after Attach
  session_.on_wait = [this] { std::fill(x_.begin(), x_.end(), 2.0f); };
  VoteRound(first, Step(verdict_.data()));
  EXPECT_EQ(parameters, std::vector<float>(kD, 2.0f));

  // Local steps move the parameters alone; a commit of kind none leaves even them.
  parameters[5] = 9.0f;
  session_.on_wait = nullptr;
  CommitOutcome none = Step(nullptr);
  none.kind = CommitKind::kNone;
  VoteRound(Ticket(1), none);
  EXPECT_EQ(parameters[5], 9.0f);
  CommitOutcome several = none;
  several.commits = 2;
  VoteRound(Ticket(2), several);
  EXPECT_EQ(parameters[5], 2.0f);

  x_[7] = 4.0f;  // a state transfer inside NextRound
  ASSERT_TRUE(voter_->Begin(Ticket(3)).ok());
  EXPECT_EQ(parameters[7], 2.0f);
  ASSERT_TRUE(voter_->Abstain(AbstainReason::kOther).ok());
  session_.outcome = none;
  ASSERT_TRUE(voter_->Wait().ok());
  RoundTicket moved = Ticket(4);
  moved.replica_moved = true;
  ASSERT_TRUE(voter_->Begin(moved).ok());
  EXPECT_EQ(parameters[7], 4.0f);
}

TEST_F(VoterTest, AHeldOutLossGoesWithTheScalars) {
  Make();
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  ASSERT_TRUE(voter_->GradientReady(0, kD).ok());
  ASSERT_TRUE(
      voter_->Finish(1.0, 1, HeldOutReport{.loss = 4.5, .round = Round(2), .windows = 77}).ok());
  ASSERT_TRUE(session_.scalars.held_out.has_value());
  EXPECT_EQ(session_.scalars.held_out->loss, 4.5);
  EXPECT_EQ(session_.scalars.held_out->windows, 77u);
}

TEST_F(VoterTest, RunsThatWantOtherBallotsAreRefusedWithTheRemedy) {
  const auto refusal = [this] {
    return Voter::Make(run_, &session_, &replica_, &device_, &gradient_source_, Clock::System(), {})
        .status();
  };
  run_.payloads = {{.first = ChunkIndex(0), .chunks = 2},
                   {.first = ChunkIndex(2), .chunks = 1, .up = PayloadKind::kBf16}};
  EXPECT_EQ(refusal().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(refusal().message()),
              HasSubstr("ballots of bf16 for the 1 chunks from 2"));
  run_.payloads.clear();
  run_.clip_norm = 1.0;
  EXPECT_EQ(refusal().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(refusal().message()), HasSubstr("--clip"));
  run_.clip_norm.reset();
  HostReplicaMemory small(std::span<float>(x_).first(10));
  EXPECT_EQ(Voter::Make(run_, &session_, &small, &device_, &gradient_source_, Clock::System(), {})
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(refusal().ok());
}

}  // namespace
}  // namespace signvote
