#pragma once
// What Voter is tested with: a run of three tensors in three chunks, gradients that are constants, and a
// session that answers what the test sets.

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "common/bits.h"
#include "tests/unit/worker/vote/fake_session.h"
#include "worker/vote/voter.h"

namespace signvote {

inline constexpr uint64_t kD = 1500;  // chunks of 512: 0..511, 512..1023, 1024..1499

inline RunInfo TestRun() {
  RunInfo run;
  run.seed = 7;
  run.layout = *Layout::Make({{.name = "a", .shape = {300}},
                              {.name = "b", .shape = {700}, .step_scale = 2.0f},
                              {.name = "c", .shape = {500}}});
  run.plan = ChunkPlan(kD, 512);
  run.ballot_plan = run.commit_plan = PayloadPlan(run.plan);
  run.direction.kind = DirectionKind::kSignum;
  run.probes = true;
  return run;
}

inline CommitOutcome Step(const uint8_t* verdict, uint64_t next_round = 1) {
  return {.next_round = Round(next_round),
          .commits = 1,
          .contiguous = true,
          .kind = CommitKind::kStep,
          .stepsize = 0.25f,
          .decay_step = 0.25f,
          .verdict = verdict};
}

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
    EXPECT_TRUE(voter_->SaveState(0, 0, std::as_writable_bytes(std::span(state))).ok());
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

}  // namespace signvote
