// Goal:   what a Voter asks of a source that takes local steps, and what it sends then.
// Method: voter_fixture.h, with a source that goes down what it is given.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "common/bits.h"
#include "tests/unit/worker/vote/voter_fixture.h"

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A source of displacements: y goes down each gradient by η, and the way from the start is signed.
class DisplacementSource : public BallotSource {
 public:
  explicit DisplacementSource(const RunInfo& run) : run_(run), y_(kD) {}
  absl::Status Bind(const RunInfo&, ReplicaMemory*, BallotPacker*) override {
    return absl::OkStatus();
  }
  uint32_t Gradients(const RoundTicket& ticket) const override { return ticket.local_steps; }
  absl::Status Begin(const RoundTicket& ticket) override {
    eta_ = ticket.eta_first;
    std::fill(y_.begin(), y_.end(), 0.0f);
    taken.clear();
    clips_taken.clear();
    ends = 0;
    return begin_status;
  }
  bool takes_steps() const override { return true; }
  bool CanVote() const override { return can_vote; }
  bool clips() const override { return true; }
  absl::Status MakeChunk(uint64_t, uint64_t, ConstTensorPointers) override {
    return absl::InternalError("no gradient of local steps comes in chunks");
  }
  absl::Status TakeGradient(uint32_t index, const WholeGradient& gradient) override {
    EXPECT_EQ(ends, 0);
    taken.push_back(index);
    clips_taken.push_back(gradient.clip);
    for (size_t t = 0; t < run_.layout.tensors().size(); ++t) {
      const TensorSpec& tensor = run_.layout.tensors()[t];
      if (gradient.g[t] == nullptr) continue;
      for (uint64_t i = 0; i < tensor.count; ++i) y_[tensor.first + i] -= eta_ * gradient.g[t][i];
    }
    return take_status;
  }
  absl::Status EndSteps() override {
    ++ends;
    return absl::OkStatus();
  }
  absl::Status PackChunk(ChunkIndex k, uint8_t* ballot) override {
    EXPECT_GT(ends, 0) << "the replica is back before anything is sent";
    for (uint64_t i = 0; i < run_.plan.Count(k); ++i)
      SetBit(ballot, i, -y_[run_.plan.First(k) + i] > 0);
    return absl::OkStatus();
  }
  absl::Status Reset() override {
    ++resets;
    return absl::OkStatus();
  }
  double Scalar(ScalarKind kind) const override {
    return kind == ScalarKind::kLocalInner ? 11.0 : 12.0;
  }
  std::span<const float> displacement_mean() const override { return means; }

  bool can_vote = true;
  absl::Status begin_status, take_status;
  std::vector<uint32_t> taken;
  std::vector<float> clips_taken;
  int resets = 0, ends = 0;
  std::vector<float> means = {0.5f, 0.25f, 0.125f};

 private:
  const RunInfo run_;
  std::vector<float> y_;
  float eta_ = 0;
};

TEST_F(VoterTest, ABallotOfLocalStepsSignsTheWayThatTheyWent) {
  DisplacementSource source(run_);
  Make({.can_probe = true}, &source);
  RoundTicket ticket = Ticket(0);
  ticket.local_steps = 3;
  ticket.eta_first = 1.0f;
  ticket.wanted = {ScalarKind::kLocalProduct, ScalarKind::kLocalInner, ScalarKind::kProbeL1,
                   ScalarKind::kPrevInner};
  ASSERT_TRUE(voter_->Begin(ticket).ok());
  EXPECT_TRUE(voter_->takes_steps());
  EXPECT_FALSE(voter_->wants_probe());
  // 1 + 1 − 3: the last gradient is negative, and so is the sum.
  std::vector<float> last(kD, -3.0f);
  for (uint64_t i = 0; i < 300; ++i) last[i] = -1.5f;  // tensor a: 1 + 1 − 1.5 is positive
  for (int h = 0; h < 3; ++h) {
    ASSERT_TRUE(voter_->wants_gradient());
    ASSERT_TRUE(voter_->SetGradient(Pointers(h == 2 ? last : g_)).ok());
    ASSERT_TRUE(voter_->GradientReady(1000, 500).ok());
    ASSERT_TRUE(voter_->GradientReady(0, 1000).ok());
    EXPECT_EQ(voter_->Finish(1.0, 1).status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(voter_->FinishSteps().status().code(), absl::StatusCode::kFailedPrecondition);
    ASSERT_TRUE(voter_->EndGradient(h == 2 ? 6.0 : h + 1.0, 4).ok());
    EXPECT_THAT(session_.events, IsEmpty()) << "nothing leaves before the steps have ended";
  }
  EXPECT_FALSE(voter_->wants_gradient());
  EXPECT_EQ(voter_->SetGradient(Pointers(g_)).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(voter_->FinishSteps().ok());
  EXPECT_THAT(session_.events, ElementsAre("chunk 2", "chunk 1", "chunk 0", "scalars"));
  EXPECT_THAT(source.taken, ElementsAre(0u, 1u, 2u));
  for (uint64_t i = 0; i < kD; ++i) ASSERT_EQ(GetBit(session_.ballots.data(), i), i < 300) << i;
  const BallotScalars& scalars = session_.scalars;
  EXPECT_EQ(scalars.local_steps, 3u);
  EXPECT_EQ(scalars.loss, 3.0);  // the mean of the three
  EXPECT_EQ(scalars.g_l1, (1500 + 1500 + 300 * 1.5 + 1200 * 3.0) / 3);
  EXPECT_EQ(scalars.g_l2_squared, (1500 + 1500 + 300 * 2.25 + 1200 * 9.0) / 3);
  EXPECT_EQ(scalars.samples, 12u);
  EXPECT_EQ(scalars.wanted.at(0), 12.0);
  EXPECT_EQ(scalars.wanted.at(1), 11.0);
  EXPECT_TRUE(std::isnan(scalars.wanted.at(2)));
  EXPECT_TRUE(std::isnan(scalars.wanted.at(3)));
  EXPECT_THAT(scalars.displacement_mean, ElementsAre(0.5f, 0.25f, 0.125f));
  CommitOutcome rewind{.commits = 1, .rewound = true, .kind = CommitKind::kRewind};
  session_.outcome = rewind;
  ASSERT_TRUE(voter_->Wait().ok());
  EXPECT_EQ(source.resets, 1);
}

TEST_F(VoterTest, LocalStepsEndWhenTheRoundSaysButNeverBeforeTheFirst) {
  FakeClock clock;
  DisplacementSource source(run_);
  auto voter = Voter::Make(run_, &session_, &replica_, &device_, &source, &clock, {});
  ASSERT_TRUE(voter.ok());
  for (const int wanted : {1, 2}) {
    RoundTicket ticket = Ticket(0);
    ticket.local_steps = 5;
    ticket.eta_first = 1.0f;
    ticket.steps_until = clock.Now() + std::chrono::seconds(wanted == 1 ? 0 : 2);
    ASSERT_TRUE((*voter)->Begin(ticket).ok());
    int taken = 0;
    while ((*voter)->wants_gradient()) {
      ASSERT_TRUE((*voter)->SetGradient(Pointers(g_)).ok());
      ASSERT_TRUE((*voter)->GradientReady(0, kD).ok());
      ASSERT_TRUE((*voter)->EndGradient(++taken, 4).ok());
      clock.Advance(std::chrono::seconds(1));
    }
    EXPECT_EQ(taken, wanted);
    ASSERT_TRUE((*voter)->FinishSteps().ok());
    EXPECT_EQ(session_.scalars.local_steps, static_cast<uint32_t>(wanted));
    EXPECT_EQ(session_.scalars.loss, wanted == 1 ? 1.0 : 1.5);
    EXPECT_EQ(session_.scalars.samples, 4u * static_cast<uint32_t>(wanted));
    session_.outcome = Step(nullptr);
    ASSERT_TRUE((*voter)->Wait().ok());
  }
}

TEST_F(VoterTest, AStepThatWasWantedIsTakenThoughTheTimeIsOverMeanwhile) {
  FakeClock clock;
  DisplacementSource source(run_);
  auto voter = Voter::Make(run_, &session_, &replica_, &device_, &source, &clock, {});
  ASSERT_TRUE(voter.ok());
  RoundTicket ticket = Ticket(0);
  ticket.local_steps = 5;
  ticket.eta_first = 1.0f;
  ticket.steps_until = clock.Now() + std::chrono::seconds(1);
  ASSERT_TRUE((*voter)->Begin(ticket).ok());
  for (int taken = 1; taken <= 2; ++taken) {
    ASSERT_TRUE((*voter)->wants_gradient());
    if (taken == 2) clock.Advance(std::chrono::seconds(2));
    ASSERT_TRUE((*voter)->SetGradient(Pointers(g_)).ok());
    ASSERT_TRUE((*voter)->GradientReady(0, kD).ok());
    ASSERT_TRUE((*voter)->EndGradient(1, 4).ok());
  }
  EXPECT_FALSE((*voter)->wants_gradient());
  ASSERT_TRUE((*voter)->FinishSteps().ok());
  EXPECT_EQ(session_.scalars.local_steps, 2u);
}

TEST_F(VoterTest, ATrialsLocalStepsTellTheirLossesAndSendNoBallot) {
  for (const BallotStart start : {BallotStart::kX0, BallotStart::kContinue}) {
    DisplacementSource source(run_);
    Make({}, &source);
    session_.events.clear();
    RoundTicket ticket = Ticket(0);
    ticket.local_steps = 1;
    ticket.start = start;
    ASSERT_TRUE(voter_->Begin(ticket).ok());
    ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
    ASSERT_TRUE(voter_->GradientReady(0, kD).ok());
    ASSERT_TRUE(voter_->EndGradient(3.5, 4).ok());
    ASSERT_TRUE(voter_->FinishSteps().ok());
    EXPECT_THAT(session_.events, ElementsAre("scalars"));
    EXPECT_EQ(session_.scalars.loss, 3.5);
    EXPECT_EQ(session_.scalars.local_steps, 1u);
  }
}

TEST_F(VoterTest, WhatIsNotFiniteInLocalStepsWithdrawsTheWholeBallot) {
  DisplacementSource source(run_);
  Make({}, &source);
  RoundTicket ticket = Ticket(0);
  ticket.local_steps = 4;
  const auto step = [&](const std::vector<float>& g) {
    EXPECT_TRUE(voter_->SetGradient(Pointers(g)).ok());
    EXPECT_TRUE(voter_->GradientReady(0, kD).ok());
    EXPECT_TRUE(voter_->EndGradient(1.0, 1).ok());
  };
  ASSERT_TRUE(voter_->Begin(ticket).ok());
  step(g_);
  std::vector<float> bad = g_;
  bad[600] = kNan;
  step(bad);
  EXPECT_THAT(source.taken, ElementsAre(0u)) << "it moves nothing";
  EXPECT_FALSE(voter_->wants_gradient());
  auto sent = voter_->FinishSteps();
  ASSERT_TRUE(sent.ok());
  EXPECT_EQ(sent->abstained, AbstainReason::kNonFiniteGradient);
  EXPECT_EQ(sent->scalars.nonfinite_coordinates, 1u);
  EXPECT_GT(source.ends, 0);
  session_.outcome = Step(nullptr);
  ASSERT_TRUE(voter_->Wait().ok());

  source.means[1] = kNan;  // of a displacement that overflowed
  ASSERT_TRUE(voter_->Begin(ticket).ok());
  step(g_);
  sent = voter_->FinishSteps();
  ASSERT_TRUE(sent.ok());
  EXPECT_EQ(sent->abstained, AbstainReason::kNonFiniteGradient);
  ASSERT_TRUE(voter_->Wait().ok());

  ASSERT_TRUE(voter_->Begin(ticket).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  EXPECT_EQ(voter_->EndGradient(static_cast<double>(kNan), 1).code(),
            absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(voter_->Abstain(AbstainReason::kNonFiniteLoss).ok());
  EXPECT_EQ(source.ends, 1) << "before the abstention is said";
  ASSERT_TRUE(voter_->Wait().ok());

  source.can_vote = false;
  ASSERT_TRUE(voter_->Begin(ticket).ok());
  EXPECT_FALSE(voter_->wants_gradient());
  sent = voter_->FinishSteps();
  ASSERT_TRUE(sent.ok());
  EXPECT_EQ(sent->abstained, AbstainReason::kOther);
  EXPECT_THAT(
      session_.events,
      ElementsAre("abstain: non-finite gradient", "wait", "abstain: non-finite gradient", "wait",
                  "abstain: non-finite loss", "wait", testing::StartsWith("abstain: ")));
}

// A trial whose steps come to infinity is told so in each of its rounds, not as something else.
TEST_F(VoterTest, WhatCannotGoOnAbstainsForTheReasonThatEndedIt) {
  DisplacementSource source(run_);
  Make({}, &source);
  RoundTicket ticket = Ticket(0);
  ticket.local_steps = 2;
  ticket.start = BallotStart::kX0;
  ASSERT_TRUE(voter_->Begin(ticket).ok());
  ASSERT_TRUE(voter_->Abstain(AbstainReason::kNonFiniteLoss).ok());
  session_.outcome = CommitOutcome{.commits = 1, .kind = CommitKind::kNone};
  ASSERT_TRUE(voter_->Wait().ok());
  source.can_vote = false;
  ticket.start = BallotStart::kContinue;
  for (const bool moved : {false, false, true, false}) {
    ticket.replica_moved = moved;
    ASSERT_TRUE(voter_->Begin(ticket).ok());
    const auto sent = voter_->FinishSteps();
    ASSERT_TRUE(sent.ok());
    const bool known = session_.events.size() < 6;
    EXPECT_EQ(sent->abstained, known ? AbstainReason::kNonFiniteLoss : AbstainReason::kOther);
    ASSERT_TRUE(voter_->Wait().ok());
  }
}

TEST_F(VoterTest, EachGradientOfLocalStepsIsClippedByItsOwnLength) {
  run_.clip_norm = std::sqrt(1500.0) / 2;
  DisplacementSource source(run_);
  Make({}, &source);
  RoundTicket ticket = Ticket(0);
  ticket.local_steps = 2;
  ASSERT_TRUE(voter_->Begin(ticket).ok());
  const std::vector<float> small(kD, 0.25f);
  for (const std::vector<float>& g : {g_, small}) {
    ASSERT_TRUE(voter_->SetGradient(Pointers(g)).ok());
    ASSERT_TRUE(voter_->GradientReady(0, kD).ok());
    ASSERT_TRUE(voter_->EndGradient(1.0, 1).ok());
  }
  EXPECT_THAT(source.clips_taken, ElementsAre(0.5f, 1.0f));
}

TEST_F(VoterTest, ARunOfLocalStepsIsRefusedByWhatSignsOneGradient) {
  run_.local_steps_max = 16;
  const auto voter =
      Voter::Make(run_, &session_, &replica_, &device_, &gradient_source_, Clock::System(), {});
  EXPECT_EQ(voter.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(voter.status().message()), HasSubstr("--local-steps"));
}

}  // namespace
}  // namespace signvote
