// Goal:   what a Voter sends and forgets, round by round, without a model and without a server.
// Method: gradients are constants that the test writes; the session answers what the test sets.
#include "worker/vote/voter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bits.h"
#include "common/coin.h"
#include "common/dense_value.h"
#include "common/half_float.h"
#include "tests/unit/worker/vote/voter_fixture.h"

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// What a checkpoint names wrongly is its caller's to know, and ends nobody's process.
TEST_F(VoterTest, AStateThatTheDirectionDoesNotHaveIsRefusedAndTheVoterGoesOn) {
  Make();
  std::vector<float> state(kD + 1);
  const auto bytes = std::as_writable_bytes(std::span(state));
  EXPECT_EQ(voter_->SaveState(1, 0, bytes.first(4)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(voter_->RestoreState(0, 0, bytes).code(), absl::StatusCode::kInvalidArgument);
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

// ‖g‖₂ = √1500: a gradient of ones is shortened to half.
TEST_F(VoterTest, AClippedGradientIsPackedOnceItsLengthIsKnownAndEntersTheStateShorter) {
  run_.clip_norm = std::sqrt(1500.0) / 2;
  Make();
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  ASSERT_TRUE(voter_->GradientReady(0, kD).ok());
  EXPECT_THAT(session_.events, IsEmpty());
  ASSERT_TRUE(voter_->Finish(1.0, 1).ok());
  EXPECT_THAT(session_.events, ElementsAre("chunk 2", "chunk 1", "chunk 0", "scalars"));
  EXPECT_EQ(session_.scalars.g_l1, 1500.0) << "sums are the raw gradient's";
  const float rest = 1.0f - 0.9f;
  for (const float m : State()) ASSERT_EQ(m, rest * 0.5f);
  // One that is short enough counts as it is.
  session_.outcome = Step(verdict_.data());
  ASSERT_TRUE(voter_->Wait().ok());
  g_.assign(kD, 0.25f);
  VoteRound(Ticket(1), Step(verdict_.data(), 2));
  for (const float m : State()) ASSERT_EQ(m, std::fma(0.9f, rest * 0.5f, rest * 0.25f));
}

// What a rule compares is of gradients that are clipped as the direction's is; a spike of one round,
// of the probe's and of the last one too, is none any more.
TEST_F(VoterTest, WhatComparesGradientsIsClippedAndTheirOwnLengthsAreNot) {
  run_.clip_norm = std::sqrt(1500.0) / 50;
  run_.keeps_gradients = true;
  for (const DirectionKind kind : {DirectionKind::kSignum, DirectionKind::kSignSgd}) {
    run_.direction.kind = kind;
    Make({.can_probe = true, .can_keep_gradient = true});
    const auto round = [this](uint64_t number, bool change) {
      RoundTicket ticket = Ticket(number);
      ticket.wanted = {ScalarKind::kPrevInner, ScalarKind::kProbeInner, ScalarKind::kGradientMax,
                       change ? ScalarKind::kChangeL1 : ScalarKind::kProbeL1};
      if (change) ticket.wanted.erase(ticket.wanted.begin() + 1);
      EXPECT_TRUE(voter_->Begin(ticket).ok());
      if (voter_->wants_probe()) {
        EXPECT_TRUE(voter_->SetProbe(Pointers(h_)).ok());
      }
      if (voter_->wants_change()) {
        EXPECT_TRUE(voter_->SetLastGradient(Pointers(h_)).ok());
      }
      EXPECT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
      EXPECT_TRUE(voter_->GradientReady(0, kD).ok());
      EXPECT_TRUE(voter_->Finish(1.0, 1).ok());
      EXPECT_TRUE(voter_->PreviousKept().ok());
      EXPECT_TRUE(voter_->GradientKept().ok());
      session_.outcome = Step(verdict_.data(), number + 1);
      EXPECT_TRUE(voter_->Wait().ok());
      return session_.scalars;
    };
    g_.assign(kD, 1.0f);
    h_.assign(kD, 0.75f);
    (void)round(0, false);
    // Step scales 1, 2, 1 on 300, 700 and 500 coordinates: ⟨g, b⟩ = 2200.
    const BallotScalars probed = round(1, false);
    ASSERT_EQ(probed.wanted.size(), 4u);
    EXPECT_DOUBLE_EQ(probed.wanted[0], 2200.0 / 50);
    EXPECT_DOUBLE_EQ(probed.wanted[1], 0.75 * 2200 / 50);
    EXPECT_DOUBLE_EQ(probed.wanted[2], 1.0 / 50);
    EXPECT_DOUBLE_EQ(probed.wanted[3], 0.25 * 1500 / 50);
    EXPECT_EQ(probed.g_l1, 1500.0);
    EXPECT_EQ(probed.g_l2_squared, 1500.0);
    // After the spike: this round's gradient is short, the one before it was not.
    g_.assign(kD, 1.0f / 64);
    h_.assign(kD, 1.0f);
    const BallotScalars changed = round(2, true);
    ASSERT_EQ(changed.wanted.size(), 3u);
    EXPECT_DOUBLE_EQ(changed.wanted[0], 2200.0 / 64) << "not clipped";
    EXPECT_DOUBLE_EQ(changed.wanted[2], 1500.0 * 63 / 64 / 50);
  }
}

TEST_F(VoterTest, AClipMakesNoChunkWaitWhereOnlySignsCount) {
  run_.clip_norm = 1.0;
  run_.direction.kind = DirectionKind::kSignSgd;
  Make();
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  ASSERT_TRUE(voter_->GradientReady(1000, 500).ok());
  EXPECT_THAT(session_.events, ElementsAre("chunk 2"));
}

TEST_F(VoterTest, AChunkWaitsForItsWholeTensorsWhereTheDirectionLooksAtThem) {
  run_.direction = {.kind = DirectionKind::kSignum, .envelope = Envelope::kTensor};
  Make();
  ASSERT_TRUE(voter_->Begin(Ticket(0)).ok());
  ASSERT_TRUE(voter_->SetGradient(Pointers(g_)).ok());
  ASSERT_TRUE(voter_->GradientReady(1024, 476).ok());  // all of chunk 2, not all of c
  EXPECT_THAT(session_.events, IsEmpty());
  ASSERT_TRUE(voter_->GradientReady(1000, 24).ok());
  EXPECT_THAT(session_.events, ElementsAre("chunk 2"));
  ASSERT_TRUE(voter_->GradientReady(0, 600).ok());  // all of chunk 0, not all of b
  EXPECT_THAT(session_.events, ElementsAre("chunk 2"));
  ASSERT_TRUE(voter_->GradientReady(600, 400).ok());
  EXPECT_THAT(session_.events, ElementsAre("chunk 2", "chunk 1", "chunk 0"));
  EXPECT_TRUE(voter_->Finish(1.0, 1).ok());
}

// Adam's steps and a tensor's envelope begin anew with each ballot, also after one that ended early.
TEST_F(VoterTest, EachBallotIsBegunAtThePacker) {
  run_.direction = {.kind = DirectionKind::kAdam, .envelope = Envelope::kTensor};
  Make();
  const auto steps = [this] {
    uint64_t value = 0;
    EXPECT_EQ(voter_->planes().back().name(), "t");
    EXPECT_TRUE(voter_
                    ->SaveState(voter_->planes().size() - 1, 0,
                                std::as_writable_bytes(std::span(&value, 1)))
                    .ok());
    return value;
  };
  VoteRound(Ticket(0), Step(verdict_.data()));
  EXPECT_EQ(steps(), 1u);
  ASSERT_TRUE(voter_->Begin(Ticket(1)).ok());
  ASSERT_TRUE(voter_->Abstain(AbstainReason::kNonFiniteLoss).ok());
  session_.outcome = Step(verdict_.data(), 2);
  ASSERT_TRUE(voter_->Wait().ok());
  EXPECT_EQ(steps(), 1u);
  VoteRound(Ticket(2), Step(verdict_.data(), 3));
  EXPECT_EQ(steps(), 2u);
}

// What a source is told between ballots, in order.
class Listener : public GradientSource {
 public:
  void SetStepsize(float stepsize) override { heard.push_back(absl::StrCat(stepsize)); }
  absl::Status Missed() override {
    heard.push_back("missed");
    return absl::OkStatus();
  }
  absl::Status Settle(BallotFate fate) override {
    const char* const words[] = {"applied", "not applied", "withdrawn"};
    heard.push_back(words[static_cast<size_t>(fate)]);
    return absl::OkStatus();
  }
  bool CanVote() const override { return can_vote; }
  std::vector<std::string> heard;
  bool can_vote = true;
};

TEST_F(VoterTest, ASourceLearnsOfTheLastStepsizeAndOfRoundsThatWentOnWithoutIt) {
  Listener source;
  Make({.can_probe = true}, &source);
  RoundTicket first = Ticket(0);
  first.replica_moved = true;  // as every first ticket
  VoteRound(first, Step(verdict_.data()));
  EXPECT_THAT(source.heard, ElementsAre("missed", "applied", "0.25"));
  source.heard.clear();
  VoteRound(Ticket(1), Step(verdict_.data(), 2));
  EXPECT_THAT(source.heard, ElementsAre("applied", "0.25"));
  source.heard.clear();
  RoundTicket late = Ticket(5);
  late.replica_moved = true;
  CommitOutcome gap = Step(verdict_.data(), 9);
  gap.commits = 3;
  gap.kind = CommitKind::kNone;  // the last of them, which says γ of the last step
  VoteRound(late, gap);
  EXPECT_THAT(source.heard, ElementsAre("missed", "not applied", "missed", "0.25"));
  source.heard.clear();
  VoteRound(Ticket(9), {.next_round = Round(20), .commits = 0, .contiguous = false});
  EXPECT_THAT(source.heard, ElementsAre("not applied", "missed")) << "nobody has said γ";
}

TEST_F(VoterTest, ASourceLearnsWhatBecameOfItsBallot) {
  Listener source;
  Make({}, &source);
  VoteRound(Ticket(0), Step(verdict_.data()));
  CommitOutcome none = Step(nullptr, 2);
  none.kind = CommitKind::kNone;
  VoteRound(Ticket(1), none);
  RoundTicket uncounted = Ticket(2);
  uncounted.uncounted = true;
  VoteRound(uncounted, Step(verdict_.data(), 3));
  g_[17] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(VoteRound(Ticket(3), Step(verdict_.data(), 4)).abstained,
            AbstainReason::kNonFiniteGradient);
  EXPECT_THAT(source.heard, ElementsAre("applied", "0.25", "not applied", "0.25", "not applied",
                                        "0.25", "withdrawn", "0.25"));
}

// A ballot of nothing but coins would have the weight of every other.
TEST_F(VoterTest, AWorkerWhoseSourceCannotVoteSendsNothingAndAbstains) {
  Listener source;
  source.can_vote = false;
  Make({}, &source);
  EXPECT_EQ(VoteRound(Ticket(4), Step(verdict_.data(), 5)).abstained, AbstainReason::kOther);
  EXPECT_THAT(session_.events, ElementsAre("abstain: other reason", "wait"));
  source.can_vote = true;
  EXPECT_EQ(VoteRound(Ticket(5), Step(verdict_.data(), 6)).abstained, std::nullopt);
}

TEST_F(VoterTest, WhatARestoredSourceCarriesGoesOnInTheRoundItWasKeptForAndInNoOther) {
  RoundTicket first = Ticket(7);
  first.replica_moved = true;
  Listener same, later, unsaid;
  Make({}, &same);
  voter_->StateIsBefore(Round(7));
  VoteRound(first, Step(verdict_.data(), 8));
  EXPECT_THAT(same.heard, ElementsAre("applied", "0.25"));
  Make({}, &later);
  voter_->StateIsBefore(Round(5));
  VoteRound(first, Step(verdict_.data(), 8));
  EXPECT_THAT(later.heard, ElementsAre("missed", "applied", "0.25"));
  Make({}, &unsaid);
  VoteRound(first, Step(verdict_.data(), 8));
  EXPECT_THAT(unsaid.heard, ElementsAre("missed", "applied", "0.25"));
  first.round = Round(9);
  voter_->StateIsBefore(Round(8));
  VoteRound(first, Step(verdict_.data(), 10));
  EXPECT_EQ(unsaid.heard[3], "missed");
}

// A run whose tensor c, of coordinates 1000 and more, is dense, and with it all but chunk 0.
class DenseVoterTest : public VoterTest {
 protected:
  void UseDense(PayloadKind wire) {
    run_.layout = *Layout::Make({{.name = "a", .shape = {300}},
                                 {.name = "b", .shape = {700}},
                                 {.name = "c", .shape = {500}, .dense = true}});
    run_.ballot_plan = *PayloadPlan::Make(run_.plan,
                                          {{.first = ChunkIndex(0), .chunks = 1},
                                           {.first = ChunkIndex(1), .chunks = 2, .kind = wire}},
                                          1);
    session_.payload = run_.ballot_plan;
  }
  // What was sent of coordinate i ≥ 512.
  float Sent(uint64_t i) const {
    const bool bf16 = run_.ballot_plan.kind(ChunkIndex(1)) == PayloadKind::kBf16;
    const uint8_t* const first = session_.ballots.data() + run_.ballot_plan.Offset(ChunkIndex(1));
    if (bf16) {
      uint16_t bits = 0;
      std::memcpy(&bits, first + (i - 512) * sizeof(bits), sizeof(bits));
      return WidenBf16(bits);
    }
    float value = 0;
    std::memcpy(&value, first + (i - 512) * sizeof(value), sizeof(value));
    return value;
  }
};

TEST_F(DenseVoterTest, ADenseChunkHasGradientsAndSignsOfWhatIsVotedOn) {
  for (uint64_t i = 0; i < kD; ++i) g_[i] = static_cast<float>(i % 7) - 3.0f + 0.001f;
  for (const PayloadKind wire : {PayloadKind::kFp32, PayloadKind::kBf16}) {
    UseDense(wire);
    Make();
    VoteRound(Ticket(0), Step(nullptr));
    ASSERT_EQ(session_.ballots.size(), run_.ballot_plan.TotalBytes());
    for (uint64_t i = 0; i < 512; ++i)
      ASSERT_EQ(GetBit(session_.ballots.data(), i), g_[i] > 0) << i;
    for (uint64_t i = 512; i < kD; ++i) {
      const float gradient = wire == PayloadKind::kBf16 ? WidenBf16(NarrowBf16(g_[i])) : g_[i];
      ASSERT_EQ(Sent(i), i >= 1000 ? gradient : g_[i] > 0 ? 1.0f : -1.0f) << i;
    }
  }
}

// ‖g‖₂ = √1500: a gradient of ones is shortened to half, also where only its sign would be voted.
TEST_F(DenseVoterTest, ADenseGradientIsClippedAsAnyOther) {
  UseDense(PayloadKind::kFp32);
  run_.clip_norm = std::sqrt(1500.0) / 2;
  run_.direction.kind = DirectionKind::kSignSgd;
  Make();
  VoteRound(Ticket(0), Step(nullptr));
  EXPECT_EQ(Sent(999), 1.0f);
  EXPECT_EQ(Sent(1000), 0.5f);
  EXPECT_EQ(Sent(1499), 0.5f);
}

TEST_F(DenseVoterTest, AGradientBeyondTheWiresNumbersIsNotSent) {
  for (const PayloadKind wire : {PayloadKind::kFp32, PayloadKind::kBf16}) {
    UseDense(wire);
    g_[1200] = kDenseValueMax;
    Make();
    EXPECT_FALSE(VoteRound(Ticket(0), Step(nullptr)).abstained.has_value());
    EXPECT_EQ(Sent(1200),
              wire == PayloadKind::kFp32 ? kDenseValueMax : WidenBf16(NarrowBf16(kDenseValueMax)));
    for (const float value : {1e20f, -3.4e38f}) {
      g_[1200] = value;
      Make();
      session_.events.clear();
      EXPECT_EQ(VoteRound(Ticket(0), Step(nullptr)).abstained, AbstainReason::kNonFiniteGradient);
      EXPECT_THAT(session_.events, ElementsAre("abstain: non-finite gradient", "wait"));
    }
  }
}

TEST_F(VoterTest, RunsThatWantOtherBallotsAreRefusedWithTheRemedy) {
  const auto refusal = [this] {
    return Voter::Make(run_, &session_, &replica_, &device_, &gradient_source_, Clock::System(), {})
        .status();
  };
  for (const DirectionConfig& carried :
       {DirectionConfig{.kind = DirectionKind::kMuon},
        DirectionConfig{.kind = DirectionKind::kSignSgd, .error_feedback = true}}) {
    run_.direction = carried;
    EXPECT_EQ(refusal().code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(refusal().message()), HasSubstr("this worker cannot make"));
  }
  run_.direction = TestRun().direction;
  run_.clip_norm = 1.0;
  EXPECT_TRUE(refusal().ok());
  class Unclipped : public GradientSource {
    bool clips() const override { return false; }
  } source;
  const auto unclipped =
      Voter::Make(run_, &session_, &replica_, &device_, &source, Clock::System(), {});
  EXPECT_EQ(unclipped.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(unclipped.status().message()), HasSubstr("--clip"));
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
