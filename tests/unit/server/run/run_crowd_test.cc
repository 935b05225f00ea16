// What a run keeps small, quick or quiet however many come and whatever they say: no socket, no
// thread.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/log.h"
#include "tests/unit/server/run/run_fixture.h"

namespace signvote::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class RunCrowdTest : public RunTest {
 protected:
  // The lines that the program logged meanwhile.
  template <typename F>
  static std::string LinesOf(F f) {
    (void)FlushLog(seconds(10));
    testing::internal::CaptureStderr();
    f();
    EXPECT_TRUE(FlushLog(seconds(10)));
    return testing::internal::GetCapturedStderr();
  }
  static size_t Count(const std::string& text, const std::string& word) {
    size_t count = 0;
    for (size_t at = 0; (at = text.find(word, at)) != std::string::npos; ++at) ++count;
    return count;
  }
  // Joins with the replica of round 0, is ready at once, and breaks off.
  void ComeAndGo(const std::string& name) {
    TestWorker& w = NewWorker();
    v1::Join join = w.MakeJoin(name);
    join.set_run_id(std::string(run_->run_id().bytes()));
    join.set_round(0);
    join.set_epoch(1);
    w.Join(join);
    ASSERT_EQ(w.welcome->state(), v1::Welcome::STATE_KEEP);
    w.Ready(Round(0));
    w.Break();
  }
};

// ---- lines of the log that workers can cause without end ----------------------------------------

TEST_F(RunCrowdTest, AWorkerThatIsLostAgainAndAgainFillsNoLog) {
  StartRun();
  Joined("a");
  const std::string lines = LinesOf([&] {
    for (int i = 0; i < 40; ++i) ComeAndGo("b");
  });
  EXPECT_EQ(run_->Snapshot(clock_.Now()).losses, 40u);
  EXPECT_LE(Count(lines, "lost b in round"), 8u);
  EXPECT_LE(Count(lines, "\n"), 40u) << lines;
  clock_.Advance(seconds(10));
  EXPECT_THAT(LinesOf([&] { ComeAndGo("b"); }), HasSubstr("more that were not told)"));
  // Another worker's lines are its own.
  EXPECT_THAT(LinesOf([&] { ComeAndGo("c"); }), HasSubstr("lost c in round"));
}

TEST_F(RunCrowdTest, UploadersThatComeAndGoFillNoLog) {
  StartRun();
  const std::string lines = LinesOf([&] {
    for (int i = 0; i < 40; ++i) {
      TestWorker& w = NewWorker();
      w.Join("w" + std::to_string(i));
      EXPECT_EQ(w.welcome->state(), v1::Welcome::STATE_UPLOAD);
      w.Break();
    }
  });
  EXPECT_LE(Count(lines, "initial parameters come from a worker"), 8u);
  EXPECT_LE(Count(lines, "the model is known"), 8u);
}

TEST_F(RunCrowdTest, AWorkerThatCannotFollowAgainAndAgainFillsNoLog) {
  RunOptions options = Options();
  options.model.sizes.catch_up_bytes = 0;  // four rounds
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  const std::string lines = LinesOf([&] {
    for (int i = 0; i < 12; ++i) {
      TestWorker& b = NewWorker();
      b.Join("b");
      b.peer->network_takes = false;
      b.peer->queued = size_t{2} << 20;
      b.AskFetch();
      while (!b.closed()) {
        a.ReadAll();
        a.Vote(RandomBits(kCoordinates, 1));
      }
    }
  });
  EXPECT_LE(Count(lines, "a worker cannot follow"), 8u);
}

// ---- many at once -------------------------------------------------------------------------------

TEST_F(RunCrowdTest, AllWorkersMayComeAtOnce) {
  RunOptions options = Options();
  options.model.sizes.workers_max = 200;
  StartRun(std::move(options));
  Joined("first");
  std::vector<TestWorker*> crowd;
  for (int i = 1; i < 200; ++i) crowd.push_back(&NewWorker());
  for (size_t i = 0; i < crowd.size(); ++i) {
    ASSERT_FALSE(crowd[i]->closed()) << i << ": " << crowd[i]->words();
    crowd[i]->Join("w" + std::to_string(i));
    EXPECT_TRUE(crowd[i]->welcome.has_value());
  }
}

// ---- what is told early, and what costs nothing -------------------------------------------------

TEST_F(RunCrowdTest, AnOptionThatCannotWorkIsToldBeforeAnybodyBringsAModel) {
  RunOptions options = Options();
  options.deadline.growth = 1.5;
  RunParts parts{.clock = &clock_, .host = this, .memory = [] { return std::nullopt; }};
  const auto run = run::Run::Create(std::move(options), std::move(parts),
                                    {.run_id = RunId::FromRandom(1, 2)}, clock_.Now());
  EXPECT_EQ(run.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Describe(run.status()), HasSubstr("growth"));
}

TEST_F(RunCrowdTest, TooFewWorkersAreToldToWhoeverAsksWhetherTheRunIsReady) {
  RunOptions options = Options();
  options.workers_min = 2;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  EXPECT_FALSE(run_->HealthNow().ready);
  EXPECT_EQ(run_->HealthNow().not_ready_because,
            "waiting for workers: 1 ready, 2 wanted (--workers-min)");
  TestWorker& b = Joined("b");
  EXPECT_TRUE(run_->HealthNow().ready) << run_->HealthNow().not_ready_because;
  const std::vector<uint8_t> bits = RandomBits(kCoordinates, 1);
  VoteRound({{&a, bits}, {&b, bits}});
  ASSERT_EQ(committed(), Round(1));
  a.Break();
  b.Break();
  EXPECT_TRUE(run_->HealthNow().ready) << "one worker that comes is enough";
}

// At 10^9 coordinates a look at all of them takes a second.
TEST_F(RunCrowdTest, WhoWritesTheParametersSaysHowLargeTheyAre) {
  StartRun();
  TestWorker& a = NewWorker();
  a.Join("a");
  const auto call = std::make_shared<FakeCall>();
  Give({.peer = a.peer->id(), .what = CallAsked{CallKind::kUpload, call}});
  Give({.peer = a.peer->id(), .what = CallProgress{call, kCoordinates * sizeof(float), 3.5f}});
  EXPECT_EQ(run_->model().x0_max_abs(), 3.5);
}

TEST_F(RunCrowdTest, AnUploadersTimeIsLookedAtWhenItIsOver) {
  StartRun();
  TestWorker& a = NewWorker();
  a.Join("a");
  EXPECT_EQ(*run_->NextTick() - clock_.Now(), seconds(60) + Duration(1));
  Pass(seconds(60));
  EXPECT_FALSE(a.closed());
  Pass(Duration(1));
  EXPECT_EQ(a.code(), absl::StatusCode::kAborted);
}

TEST_F(RunCrowdTest, AWorkerThatComesRenewsTheWaitForTheFirstParameters) {
  RunOptions options = Options();
  options.wait_timeout = minutes(5);
  StartRun(std::move(options));
  Pass(minutes(4));
  TestWorker& a = NewWorker();
  a.Join("a");
  a.Break();
  Pass(minutes(4));
  EXPECT_FALSE(run_->ended());
  Pass(minutes(2));
  EXPECT_TRUE(run_->ended());
}

// ---- what is counted ----------------------------------------------------------------------------

TEST_F(RunCrowdTest, WhatATransferMovedCountsThoughItsSessionIsOver) {
  StartRun();
  Joined("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  b.AskFetch();
  const PeerId peer = b.peer->id();
  const uint64_t before = run_->Snapshot(clock_.Now()).wire.down_setup_bytes;
  b.Break();
  Give({.peer = peer, .what = CallMoved{.up = 1, .down = 1'000'000}});
  EXPECT_EQ(run_->Snapshot(clock_.Now()).wire.down_setup_bytes, before + 1'000'000);
}

TEST_F(RunCrowdTest, TheFirstTimesOfABallotStand) {
  StartRun();
  TestWorker& a = Joined("a");
  a.ReadAll();
  const v1::RoundOpen open = *a.open;
  a.SendScalars(1);  // computed for a millisecond
  ScalarsIn second{.round = Round(open.round()), .attempt = Attempt(open.attempt())};
  second.times = {.compute_us = 900'000};
  Give({.peer = a.peer->id(), .what = std::move(second)});
  Pass(seconds(1));
  const std::vector<uint8_t> bits = RandomBits(kCoordinates, 1);
  for (uint32_t k = 0; k < a.peer->slots->plan().chunks(); ++k) {
    a.SendChunk(k, bits);
    a.open = open;
  }
  EXPECT_EQ(committed(), Round(1));
  EXPECT_DOUBLE_EQ(run_->Snapshot(clock_.Now()).split.compute, 1e-3);
}

}  // namespace
}  // namespace signvote::run
