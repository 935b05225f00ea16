// A run that goes on from what a worker saved of it.

#include "server/run/run_save.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/run/settings.h"
#include "tests/unit/server/run/run_fixture.h"

namespace signvote::run {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr uint64_t kRounds = 12, kStop = 5;

class RunSaveTest : public RunTest {
 protected:
  static RunOptions Options() {
    RunOptions options = RunTest::Options();
    options.return_wait = seconds(60);
    options.workers_min = 2;
    options.main_rounds_max = kRounds;
    options.digest_every = 0;
    options.rule.schedule = "linear";
    return options;
  }
  TestWorker& Saving(const std::string& name) {
    TestWorker& worker = NewWorker();
    v1::Join join = worker.MakeJoin(name);
    join.set_wants_run_state(true);
    worker.Join(join);
    worker.BringState();
    return worker;
  }
  // Joins again with what it has.
  TestWorker& Back(const std::string& name, const TestWorker& before) {
    TestWorker& worker = NewWorker();
    worker.x = before.x;
    worker.pieces = before.pieces;
    v1::Join join = worker.MakeJoin(name);
    join.set_run_id(std::string(run_->run_id().bytes()));
    join.set_round(before.lowest().value());
    join.set_epoch(before.commits.back().epoch());
    worker.Join(join);
    worker.BringState();
    return worker;
  }
  void VoteOf(TestWorker& a, TestWorker& b) {
    const uint64_t round = a.open->round();
    VoteRound({{&a, RandomBits(kCoordinates, 100 * round + 1)},
               {&b, RandomBits(kCoordinates, 100 * round + 2)}});
  }
  static SavedRun SaveOf(const TestWorker& worker) {
    SavedRun saved{.head = worker.welcome->run_head(),
                   .after = worker.commits.back().run_state(),
                   .digest = worker.Digest(),
                   .run_id = RunId::FromRandom(1, 2)};
    saved.round = worker.lowest();
    return saved;
  }
  absl::StatusOr<RunState> TakenUp(const SavedRun& saved, const std::vector<float>& x,
                                   Epoch epoch = Epoch(1)) {
    auto head = HeadOf(saved);
    if (!head.ok()) return head.status();
    return TakeUpSave(*std::move(head), epoch, std::make_shared<std::vector<float>>(x), nullptr);
  }
};

TEST_F(RunSaveTest, ARunThatGoesOnFromASaveEndsAsOneThatNobodyDisturbed) {
  StartRun(Options());
  {
    TestWorker& a = Joined("a");
    TestWorker& b = Joined("b");
    ReadAll();
    while (!run_->ended()) VoteOf(a, b);
  }
  const uint64_t digest = workers_[0]->Digest();

  StartRun(Options());
  TestWorker& a = Saving("a");
  TestWorker& b = Joined("b");
  ReadAll();
  for (uint64_t round = 0; round < kStop; ++round) VoteOf(a, b);
  EXPECT_EQ(b.welcome->run_head(), "") << "who saves nothing pays nothing";
  EXPECT_EQ(b.commits.back().run_state(), "");
  auto state = TakenUp(SaveOf(a), a.x);
  ASSERT_TRUE(state.ok()) << Describe(state.status());
  EXPECT_EQ(state->run_id, RunId::FromRandom(1, 2));
  EXPECT_EQ(state->engine.round, Round(kStop));
  EXPECT_EQ(state->engine.course.main_rounds, kStop);
  EXPECT_EQ(state->epoch, Epoch(2));

  // What they have outlives the run that they had it of.
  const std::vector<std::unique_ptr<TestWorker>> before = std::exchange(workers_, {});
  StartRun(Options(), nullptr, *std::move(state));
  TestWorker& a2 = Back("a", *before[0]);
  TestWorker& b2 = Back("b", *before[1]);
  EXPECT_EQ(b2.welcome->state(), v1::Welcome::STATE_KEEP) << "nobody fetches what it has";
  ReadAll();
  EXPECT_EQ(a2.open->round(), kStop);
  while (!run_->ended()) VoteOf(a2, b2);
  EXPECT_EQ(a2.Digest(), digest);
  EXPECT_EQ(b2.Digest(), digest);
}

TEST_F(RunSaveTest, AWorkerThatIsAheadOfTheSaveFetchesTheState) {
  StartRun(Options());
  TestWorker& a = Saving("a");
  TestWorker& b = Joined("b");
  ReadAll();
  for (uint64_t round = 0; round < kStop; ++round) VoteOf(a, b);
  const SavedRun saved = SaveOf(a);
  const std::vector<float> x = a.x;
  VoteOf(a, b);
  auto state = TakenUp(saved, x);
  ASSERT_TRUE(state.ok()) << Describe(state.status());
  const std::vector<std::unique_ptr<TestWorker>> before = std::exchange(workers_, {});
  StartRun(Options(), nullptr, *std::move(state));
  TestWorker& b2 = Back("b", *before[1]);
  EXPECT_EQ(b2.welcome->state(), v1::Welcome::STATE_FETCH);
  EXPECT_EQ(b2.x, x);
}

TEST_F(RunSaveTest, TheEpochIsAboveThoseThatTheSaveKnowsAndTheOneThatIsGiven) {
  StartRun(Options());
  TestWorker& a = Saving("a");
  TestWorker& b = Joined("b");
  ReadAll();
  VoteOf(a, b);
  EXPECT_EQ(TakenUp(SaveOf(a), a.x, Epoch(1))->epoch, Epoch(2));
  EXPECT_EQ(TakenUp(SaveOf(a), a.x, Epoch(1'700'000'000))->epoch, Epoch(1'700'000'000));
}

TEST_F(RunSaveTest, WhatIsOfAnotherRunOrRoundOrNoneIsRefused) {
  StartRun(Options());
  TestWorker& a = Saving("a");
  TestWorker& b = Joined("b");
  ReadAll();
  VoteOf(a, b);
  const auto expect_refused = [](const SavedRun& saved, const std::string& why) {
    const auto head = HeadOf(saved);
    EXPECT_EQ(head.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(Describe(head.status()), HasSubstr(why));
  };
  SavedRun saved = SaveOf(a);
  saved.round = Round(2);
  expect_refused(saved, "of round 1, and its replica of round 2");
  saved = SaveOf(a);
  saved.run_id = RunId::FromRandom(3, 4);
  expect_refused(saved, "of another run");
  saved = SaveOf(a);
  saved.after = "\xff";
  expect_refused(saved, "no messages of a run");
  const auto state = TakenUp(SaveOf(a), std::vector<float>(3));
  EXPECT_EQ(state.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Describe(state.status()), HasSubstr("x has 3 coordinates"));
}

TEST_F(RunSaveTest, SettingsThatTheRunDoesNotHaveAreRefusedByTheirFlag) {
  StartRun(Options());
  TestWorker& a = Saving("a");
  TestWorker& b = Joined("b");
  ReadAll();
  VoteOf(a, b);
  const auto head = HeadOf(SaveOf(a));
  ASSERT_TRUE(head.ok());
  EXPECT_TRUE(CheckSettings(*head, Options()).ok());
  RunOptions other = Options();
  other.seed = 9;
  EXPECT_THAT(Describe(CheckSettings(*head, other)), HasSubstr("start it with --seed 0"));
}

TEST_F(RunSaveTest, OfCommitsThatAreCaughtUpOnTheLastAloneSaysWhereTheRunStands) {
  StartRun(Options());
  TestWorker& a = Saving("a");
  TestWorker& b = Joined("b");
  ReadAll();
  VoteOf(a, b);
  const std::vector<float> x = a.x;
  const auto pieces = a.pieces;
  const uint64_t epoch = a.commits.back().epoch();
  for (uint64_t round = 1; round < kStop; ++round) VoteOf(a, b);
  TestWorker& c = NewWorker();
  c.x = x;
  c.pieces = pieces;
  v1::Join join = c.MakeJoin("c");
  join.set_wants_run_state(true);
  join.set_run_id(std::string(run_->run_id().bytes()));
  join.set_round(1);
  join.set_epoch(epoch);
  c.Join(join);
  c.BringState();
  ReadAll();
  ASSERT_EQ(c.commits.size(), kStop - 1);
  for (const auto& commit : c.commits)
    EXPECT_EQ(commit.run_state().empty(), commit.round() + 1 < kStop) << commit.round();
  EXPECT_EQ(c.commits.back().run_state(), a.commits.back().run_state());
}

TEST_F(RunSaveTest, AThousandWorkersTakeLessThanAHundredBytesEach) {
  RunState state{.run_id = RunId::FromRandom(1, 2), .epoch = Epoch(1)};
  for (uint32_t id = 0; id < 1000; ++id) {
    const std::string name = "worker-" + std::to_string(id);
    state.engine.workers.push_back({.id = round::WorkerId(id),
                                    .name = name,
                                    .incarnation = Incarnation(3),
                                    .last_seen = Round(100'000),
                                    .ballots = 100'000});
    state.engine.shares.push_back(
        {.share = Share(id), .holder = round::WorkerId(id), .free_from = Round(100'000)});
    state.roster.names.push_back(
        {.id = round::WorkerId(id), .name = name, .incarnation = Incarnation(3)});
  }
  const size_t bytes = StateForSave(state).size();
  EXPECT_LT(bytes, 100'000u);
  EXPECT_GT(bytes, 20'000u) << "they are in it";
}

TEST_F(RunSaveTest, AStateThatTakesMoreOfAMessageThanItMayIsLeftOut) {
  RunOptions options = Options();
  options.model.sizes.message_bytes_max = 1 << 16;
  options.model.sizes.chunk_coordinates = kChunk;
  StartRun(options);
  TestWorker& worker = NewWorker();
  v1::Join join = worker.MakeJoin("a");
  join.set_wants_run_state(true);
  join.set_model_config_json("{\"a\":\"" + std::string(1 << 15, 'x') + "\"}");
  worker.Join(join);
  worker.BringState();
  EXPECT_EQ(worker.welcome->run_head(), "");
}

}  // namespace
}  // namespace signvote::run
