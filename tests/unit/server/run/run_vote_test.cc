// Rounds, from the ballots to the commit and to the end of the run: no socket, no thread.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/coin.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "tests/unit/server/run/run_fixture.h"
#include "tests/unit/server/run/scripted_rule.h"

namespace signvote::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RunVoteTest : public RunTest {};

TEST_F(RunVoteTest, OneWorkerTrainsARunFromItsUploadToTheEnd) {
  RunOptions options = Options();
  options.main_rounds_max = 3;
  options.digest_every = 2;
  StartRun(std::move(options));
  TestWorker& w = NewWorker();
  for (size_t i = 0; i < w.x.size(); ++i) w.x[i] = std::sin(static_cast<float>(i));
  w.Join("w0");
  w.BringState();
  for (uint64_t round = 0; round < 3; ++round) {
    ASSERT_TRUE(w.open.has_value());
    EXPECT_EQ(w.open->round(), round);
    EXPECT_EQ(w.open->data_step(), round);
    EXPECT_EQ(w.open->members(), 1u);
    w.Vote(RandomBits(kCoordinates, round), 2.5);
    ReadAll();
    const v1::Commit& commit = w.commits.back();
    EXPECT_EQ(commit.round(), round);
    EXPECT_EQ(commit.kind(), v1::Commit::KIND_STEP);
    EXPECT_EQ(commit.stepsize(), 0.01f);
    EXPECT_EQ(commit.rho(), 1.0f);
    EXPECT_EQ(commit.loss(), 2.5);
    EXPECT_EQ(commit.voters(), 1u);
    EXPECT_EQ(commit.data_step(), round);
    EXPECT_EQ(commit.next_data_step(), round + 1);
    EXPECT_EQ(commit.main_round(), round + 1);
    EXPECT_EQ(commit.run_done(), round == 2);
  }
  EXPECT_TRUE(w.finish);
  ASSERT_TRUE(run_->ended());
  EXPECT_TRUE(run_->end_status().ok()) << Describe(run_->end_status());
  const StatusPage page = run_->Snapshot(clock_.Now());
  EXPECT_EQ(page.master_digest, w.Digest());
  EXPECT_EQ(page.master_digest_round, Round(3));
  EXPECT_EQ(page.wire.ballots, 3u);
  EXPECT_EQ(page.wire.fp32_equivalent_bytes, 3 * 4 * kCoordinates);
  EXPECT_EQ(page.workers[0].agreement, 1.0);
  EXPECT_THAT(Events(), ElementsAre("joined w0", "member w0", "finished", "ended"));
}

TEST_F(RunVoteTest, TheVerdictIsTheMajorityWithSeededCoinsForTies) {
  RunOptions options = Options();
  options.seed = 42;
  options.workers_min = 2;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  ReadAll();
  EXPECT_NE(a.open->share(), b.open->share());
  const std::vector<uint8_t> bits_a = RandomBits(kCoordinates, 1);
  const std::vector<uint8_t> bits_b = RandomBits(kCoordinates, 2);
  a.Vote(bits_a);
  b.Vote(bits_b);
  std::string verdict;
  for (const v1::ServerMessage& message : a.peer->messages) {
    if (message.has_verdict_chunk()) verdict += message.verdict_chunk().payload();
  }
  const auto* bits = reinterpret_cast<const uint8_t*>(verdict.data());
  for (uint64_t i = 0; i < kCoordinates; ++i) {
    const uint32_t ones = GetBit(bits_a.data(), i) + GetBit(bits_b.data(), i);
    const bool coin = (TieCoinWord(42, Round(0), i / 64) >> (i % 64)) & 1;
    ASSERT_EQ(GetBit(bits, i), ones == 2 || (ones == 1 && coin)) << i;
  }
  ReadAll();
  EXPECT_EQ(a.Digest(), b.Digest());
}

TEST_F(RunVoteTest, AReplayedBallotIsCountedOnceAndALateOneNot) {
  RunOptions options = Options();
  options.workers_min = 2;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  ReadAll();
  const std::vector<uint8_t> bits = RandomBits(kCoordinates, 5);
  a.Vote(bits);
  a.SendChunk(0, RandomBits(kCoordinates, 6));  // a second, different vote
  EXPECT_EQ(run_->Snapshot(clock_.Now()).duplicate_chunks, 1u);
  const v1::RoundOpen first = *b.open;
  b.Vote(bits);
  ReadAll();
  EXPECT_EQ(a.commits[0].counted(0), 2u);
  b.open = first;
  b.SendChunk(0, bits);
  EXPECT_EQ(run_->Snapshot(clock_.Now()).late_chunks, 1u);
}

TEST_F(RunVoteTest, ABrokenWorkerIsNotWaitedForAndComesBackWithItsOwnReplica) {
  RunOptions options = Options();
  options.workers_min = 2;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  ReadAll();
  b.Break();
  a.Vote(RandomBits(kCoordinates, 1));
  ReadAll();
  EXPECT_EQ(a.commits.back().voters(), 1u);
  TestWorker& again = NewWorker();
  v1::Join join = again.MakeJoin("b");
  join.set_run_id(b.welcome->run_id());
  join.set_round(0);
  join.set_epoch(1);
  again.Join(join);
  ASSERT_EQ(again.welcome->state(), v1::Welcome::STATE_KEEP);
  EXPECT_GT(again.welcome->incarnation(), b.welcome->incarnation());
  again.pieces = b.pieces;
  again.Ready(Round(0));
  ReadAll();
  ASSERT_EQ(again.commits.size(), 1u) << "the commit it missed, with its verdict";
  EXPECT_EQ(again.Digest(), a.Digest());
}

TEST_F(RunVoteTest, AReplicaThatDiffersIsToldToFetchTheStateAgain) {
  RunOptions options = Options();
  options.workers_min = 3;
  options.digest_every = 1;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  TestWorker& c = Joined("c");
  ReadAll();
  c.x[0] += 1;
  const std::vector<uint8_t> bits = RandomBits(kCoordinates, 1);
  for (TestWorker* worker : {&a, &b, &c}) worker->Vote(bits);
  ReadAll();
  ASSERT_TRUE(c.resync.has_value());
  EXPECT_FALSE(a.resync.has_value());
  c.Fetch();
  EXPECT_EQ(c.Digest(), a.Digest());
  c.open.reset();
  c.Ready(c.lowest());
  ReadAll();
  // It is asked for its ballot again, in the round that is open.
  ASSERT_TRUE(c.open.has_value());
  EXPECT_EQ(c.open->round(), 1u);
  EXPECT_EQ(run_->Snapshot(clock_.Now()).digest_mismatches, 1u);
}

TEST_F(RunVoteTest, AnAbstentionIsToldOncePerSpell) {
  RunOptions options = Options();
  options.workers_min = 2;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  for (const bool counted : {false, false, true, false}) {
    ReadAll();
    ASSERT_TRUE(a.open.has_value() && b.open.has_value());
    if (counted) {
      b.Vote(RandomBits(kCoordinates, 1));
    } else {
      b.Abstain(AbstainReason::kNonFiniteLoss);
    }
    a.Vote(RandomBits(kCoordinates, 1));
  }
  ReadAll();
  EXPECT_THAT(Events(), ElementsAre("joined a", "joined b", "member a", "member b", "abstained b",
                                    "abstained b"));
}

TEST_F(RunVoteTest, ARoleThatACommitBroughtIsToldWithItAndFromItsRoundOn) {
  RunOptions options = Options();
  options.workers_min = 2;
  options.observer_after = 2;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  for (int round = 0; round < 2; ++round) {
    ReadAll();
    a.Vote(RandomBits(kCoordinates, 1));
    b.Abstain(AbstainReason::kOther);
  }
  ReadAll();
  std::optional<uint64_t> observer, joined;
  run_->Watch(clock_.Now(), 0, Duration::zero(), [&](absl::StatusOr<WatchView> view) {
    for (const Event& event : view->events) {
      if (event.kind == EventKind::kObserver) observer = event.round;
      if (event.kind == EventKind::kJoined) joined = event.round;
    }
  });
  EXPECT_EQ(observer, 2u) << "committed rounds, the one that decided it among them";
  EXPECT_EQ(joined, 0u);
}

// A minibatch that gives nobody a finite loss costs a round and no step, and does not come again.
TEST_F(RunVoteTest, ARoundWithoutAFiniteLossMovesNothingAndGoesOnToTheNextMinibatch) {
  StartRun();
  TestWorker& w = Joined("w");
  ReadAll();
  const uint64_t before = w.Digest();
  for (int attempt = 0; attempt < 2 && w.commits.empty(); ++attempt) {
    ASSERT_TRUE(w.open.has_value()) << attempt;
    w.Abstain(AbstainReason::kNonFiniteLoss);
    ReadAll();
  }
  ASSERT_EQ(w.commits.size(), 1u);
  const v1::Commit& commit = w.commits[0];
  EXPECT_EQ(commit.kind(), v1::Commit::KIND_NONE);
  EXPECT_EQ(commit.counted_size(), 0);
  EXPECT_EQ(commit.payload_hash(), 0u);
  EXPECT_EQ(commit.main_round(), 0u);
  EXPECT_EQ(commit.next_data_step(), 1u);
  EXPECT_FALSE(commit.reason().empty());
  EXPECT_EQ(w.Digest(), before);
  Pass(minutes(1));
  ReadAll();
  ASSERT_TRUE(w.open.has_value());
  EXPECT_EQ(w.open->round(), 1u);
  EXPECT_EQ(w.open->data_step(), 1u);
  w.Vote(RandomBits(kCoordinates, 1));
  ReadAll();
  EXPECT_EQ(w.commits.back().main_round(), 1u);
  EXPECT_EQ(applier_->backlog(), 0u);
}

TEST_F(RunVoteTest, NoFiniteLossForFiveRoundsEndsTheRunAsDiverged) {
  StartRun();
  TestWorker& w = Joined("w");
  for (int i = 0; i < 20 && !run_->ended(); ++i) {
    ReadAll();
    if (w.open.has_value()) w.Abstain(AbstainReason::kNonFiniteLoss);
    Pass(seconds(31));
  }
  ASSERT_TRUE(run_->ended());
  EXPECT_EQ(ExitCodeFor(run_->end_status()), ExitCode::kDiverged);
  EXPECT_EQ(committed(), Round(5));
  run_->CloseStreams(clock_.Now());
  Settle();
  EXPECT_EQ(w.code(), absl::StatusCode::kFailedPrecondition) << "nothing resumes such a run";
  EXPECT_EQ(ExitCodeFor(*w.peer->closed), ExitCode::kDiverged) << "its workers end as it does";
  EXPECT_EQ(run_->Snapshot(clock_.Now()).refusals, 0u) << "the end of a run is nobody's refusal";
}

TEST_F(RunVoteTest, AWorkerIsToldOnlyTheScalarsThatItIsAskedFor) {
  StartRun(Options(), std::make_unique<ScriptedRule>(
                          std::vector<StepsizeDecision>(3, {.gamma = 0.5f, .reason = "on"})));
  TestWorker& one = NewWorker();
  one.Join("one");
  one.BringState();
  one.KeepX0(one.x);
  TestWorker& two = NewWorker();
  two.Join("two");
  two.Fetch();
  two.KeepX0(one.x);
  two.Ready(two.lowest());
  ReadAll();
  Pass(minutes(1));
  ReadAll();
  for (int round = 0; round < 2 && !two.open.has_value(); ++round) {
    ASSERT_TRUE(one.open.has_value());
    const v1::RoundOpen open = *one.open;
    for (uint32_t k = 0; k < 3; ++k) one.SendChunk(k, RandomBits(kCoordinates, 1));
    one.open = open;
    one.SendScalars(1, {7.0, 1.0});
    ReadAll();
    Pass(minutes(1));
    ReadAll();
  }
  ASSERT_TRUE(one.open.has_value());
  ASSERT_TRUE(two.open.has_value());
  EXPECT_EQ(one.open->wanted_size(), 2);
  ASSERT_EQ(two.open->wanted_size(), 1);
  EXPECT_EQ(two.open->wanted(0), v1::SCALAR_X0_INNER);
}

TEST_F(RunVoteTest, CommitsOfEveryKindReachWorkersReplicaAndThoseWhoCatchUp) {
  auto rule = std::make_unique<ScriptedRule>(std::vector<StepsizeDecision>{
      {.gamma = 0.5f, .rho = 1.25f},
      {.gamma = 0.25f, .rho = 0.5f, .next_data_step = DataStep(100)},
      {.kind = CommitKind::kRewind, .gamma = 0.25f, .main_round = false, .reason = "back"},
      {.kind = CommitKind::kNone, .gamma = 0.25f, .main_round = false, .reason = "no"},
      {.gamma = 0.125f, .run_done = true},
  });
  const ScriptedRule* const seen = rule.get();
  StartRun(Options(), std::move(rule));
  TestWorker& w = NewWorker();
  for (size_t i = 0; i < w.x.size(); ++i) w.x[i] = std::cos(static_cast<float>(i));
  const std::vector<float> x0 = w.x;
  w.Join("w");
  EXPECT_TRUE(w.welcome->needs_x0());
  EXPECT_TRUE(w.welcome->probes());
  EXPECT_TRUE(w.welcome->keeps_gradients());
  w.BringState();
  w.KeepX0(x0);
  TestWorker& late = NewWorker();
  late.Join("late");
  late.Fetch();
  late.KeepX0(x0);
  for (uint64_t round = 0; round < 5; ++round) {
    ReadAll();
    Pass(minutes(1));
    ReadAll();
    ASSERT_TRUE(w.open.has_value()) << round;
    ASSERT_EQ(w.open->wanted_size(), 2);
    EXPECT_EQ(w.open->wanted(0), v1::SCALAR_X0_INNER);
    EXPECT_EQ(w.open->wanted(1), v1::SCALAR_PROBE_L1);
    EXPECT_EQ(w.open->data_step(), round < 2 ? round : round == 2 ? 100u : 100 + round - 2);
    const v1::RoundOpen open = *w.open;
    for (uint32_t k = 0; k < 3; ++k) w.SendChunk(k, RandomBits(kCoordinates, round));
    w.open = open;
    w.SendScalars(1, {7.0, std::nan("")});
    EXPECT_EQ(seen->seen_, 7.0);
  }
  late.Ready(late.lowest());
  ReadAll();
  using C = v1::Commit;
  for (const TestWorker* worker : {&w, &late}) {
    ASSERT_EQ(worker->commits.size(), 5u);
    EXPECT_EQ(worker->commits[0].rho(), 1.25f);
    EXPECT_EQ(worker->commits[2].kind(), C::KIND_REWIND);
    EXPECT_EQ(worker->commits[2].reason(), "back");
    EXPECT_EQ(worker->commits[3].kind(), C::KIND_NONE);
    EXPECT_TRUE(worker->commits[4].run_done());
    EXPECT_EQ(worker->commits[4].main_round(), 3u);
    EXPECT_EQ(worker->Digest(), run_->Snapshot(clock_.Now()).master_digest);
  }
}

TEST_F(RunVoteTest, ARuleThatAnswersWhatNoCommitCanCarryOutEndsTheRunWithItsName) {
  for (const bool needs_x0 : {true, false}) {
    const float rho = needs_x0 ? 0.5f : 1.0f;
    StartRun(Options(), std::make_unique<ScriptedRule>(
                            std::vector<StepsizeDecision>{
                                {.gamma = 0.5f},
                                {.kind = CommitKind::kRewind, .rho = rho, .main_round = false}},
                            needs_x0));
    TestWorker& w = Joined("w");
    VoteRound({{&w, RandomBits(kCoordinates, 1)}});
    VoteRound({{&w, RandomBits(kCoordinates, 2)}});
    ASSERT_TRUE(run_->ended());
    EXPECT_EQ(committed(), Round(1));
    EXPECT_EQ(ExitCodeFor(run_->end_status()), ExitCode::kInternal);
    EXPECT_THAT(Describe(run_->end_status()), HasSubstr("the stepsize rule 'scripted'"));
    run_->CloseStreams(clock_.Now());
    EXPECT_EQ(w.code(), absl::StatusCode::kFailedPrecondition) << "nothing resumes such a run";
  }
}

// ---- the server's own applier -------------------------------------------------------------------

// A full applier is waited for by rounds alone: pings, joins and health answer, nobody is blamed.
TEST_F(RunVoteTest, AFullApplierHoldsUpRoundsAndNothingElse) {
  RunOptions options = Options();
  options.model.sizes.catch_up_bytes = 0;  // four rounds
  options.deadline.enabled = true;
  StartRun(std::move(options));
  TestWorker& w = Joined("w");
  applier_works_ = false;
  uint64_t votes = 0;
  for (int i = 0; i < 10; ++i) {
    ReadAll();
    if (!w.open.has_value()) break;
    w.Vote(RandomBits(kCoordinates, 1));
    ++votes;
  }
  ReadAll();
  EXPECT_EQ(votes, 4u) << "as many as the ring holds";
  EXPECT_EQ(committed(), Round(4));
  Pass(minutes(10));
  const Health health = run_->HealthNow();
  EXPECT_FALSE(health.ready);
  EXPECT_THAT(health.not_ready_because, HasSubstr("its own applier"));
  EXPECT_EQ(health.applier_lag, 4u);
  TestWorker& other = NewWorker();
  other.Join("other");
  EXPECT_TRUE(other.welcome.has_value()) << "joins are answered";
  EXPECT_EQ(run_->Snapshot(clock_.Now()).abstentions, 0u) << "nobody is called silent";
  applier_works_ = true;
  Settle();
  ReadAll();
  ASSERT_TRUE(w.open.has_value());
  EXPECT_EQ(w.open->round(), 4u);
  EXPECT_TRUE(run_->HealthNow().ready);
}

TEST_F(RunVoteTest, AnApplierThatIsAlwaysLateIsFollowedAtItsPace) {
  RunOptions options = Options();
  options.model.sizes.catch_up_bytes = 0;  // four rounds
  options.deadline.enabled = true;
  options.workers_min = 2;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  applier_works_ = false;
  const auto vote_while_open = [&] {
    uint64_t rounds = 0;
    for (ReadAll(); a.open.has_value() && b.open.has_value(); ReadAll(), ++rounds) {
      EXPECT_EQ(a.open->round(), committed().value());
      a.Vote(RandomBits(kCoordinates, rounds));
      b.Vote(RandomBits(kCoordinates, rounds));
    }
    return rounds;
  };
  ASSERT_TRUE(FlushLog(minutes(1)));
  testing::internal::CaptureStderr();
  EXPECT_EQ(vote_while_open(), 4u) << "as many as the ring holds";
  ASSERT_TRUE(FlushLog(minutes(1)));
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("round 4 waits for the server's own applier, which is behind"));
  for (int late = 0; late < 6; ++late) {
    Pass(seconds(15));
    EXPECT_EQ(vote_while_open(), 0u) << "nothing was applied";
    EXPECT_FALSE(run_->HealthNow().ready);
    EXPECT_THAT(run_->HealthNow().not_ready_because, HasSubstr("its own applier"));
    // A second stream under a member's name is answered by that member's pong.
    const int pings = a.pings;
    TestWorker& twin = NewWorker();
    twin.Join("a");
    ReadAll();
    EXPECT_EQ(a.pings, pings + 1);
    EXPECT_EQ(twin.code(), absl::StatusCode::kAlreadyExists) << twin.words();
    TestWorker& other = NewWorker();
    other.Join("other-" + std::to_string(late));
    EXPECT_TRUE(other.welcome.has_value()) << "joins are answered";
    std::optional<Applied> applied = applier_->ApplyNext();
    ASSERT_TRUE(applied.has_value());
    run_->Handle(clock_.Now(), *std::move(applied));
    ReadAll();
    ASSERT_TRUE(a.open.has_value());
    // A deadline of long ago would close this round on the spot: it counts from its RoundOpen.
    Tick(milliseconds(1));
    EXPECT_EQ(vote_while_open(), 1u) << "a round for a round";
  }
  EXPECT_EQ(committed(), Round(10));
  EXPECT_EQ(a.commits.back().voters(), 2u);
  const StatusPage page = run_->Snapshot(clock_.Now());
  EXPECT_EQ(page.abstentions, 0u) << "nobody is called silent";
  EXPECT_EQ(page.losses, 0u);
  applier_works_ = true;
  Settle();
  EXPECT_EQ(run_->HealthNow().applier_lag, 0u);
}

TEST_F(RunVoteTest, AnApplierDelayedOnceSlowsNoRoundWhileTheRingHasRoom) {
  RunOptions options = Options();
  options.deadline.enabled = true;
  StartRun(std::move(options));
  TestWorker& w = Joined("w");
  applier_works_ = false;
  for (int i = 0; i < 20; ++i) {
    ReadAll();
    ASSERT_TRUE(w.open.has_value());
    w.Vote(RandomBits(kCoordinates, 1));
  }
  EXPECT_EQ(committed(), Round(20));
  EXPECT_EQ(run_->HealthNow().applier_lag, 20u);
  EXPECT_TRUE(run_->HealthNow().ready);
  clock_.Advance(seconds(15));
  applier_works_ = true;
  Settle();
  ReadAll();
  ASSERT_TRUE(w.open.has_value());
  EXPECT_EQ(w.open->round(), 20u);
  EXPECT_EQ(run_->HealthNow().applier_lag, 0u);
}

// ---- a run from its state -----------------------------------------------------------------------

TEST_F(RunVoteTest, ARunGoesOnFromItsStateWithTheSameDigests) {
  const auto vote = [](TestWorker& w, uint64_t round) {
    ASSERT_TRUE(w.open.has_value());
    ASSERT_EQ(w.open->round(), round);
    w.Vote(RandomBits(kCoordinates, round));
  };
  RunOptions options = Options();
  options.rule.schedule = "linear";
  options.main_rounds_max = 10;
  StartRun(options);
  TestWorker& a = Joined("a");
  for (uint64_t round = 0; round < 4; ++round) {
    ReadAll();
    if (round == 3) {
      EXPECT_TRUE(run_->Pause(clock_.Now()).ok());
    }
    vote(a, round);
  }
  ReadAll();
  auto state = run_->State();
  ASSERT_TRUE(state.ok()) << Describe(state.status());
  EXPECT_EQ(state->engine.round, Round(4));
  const uint64_t digest = a.Digest();
  const StateParts parts = EncodeState(*state);
  std::string bytes;
  for (const auto& part : parts.parts)
    bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
  run_.reset();

  auto decoded = DecodeState(std::as_bytes(std::span(bytes)));
  ASSERT_TRUE(decoded.ok()) << Describe(decoded.status());
  decoded->epoch = Epoch(2);
  StartRun(options, nullptr, *decoded);
  EXPECT_EQ(committed(), Round(4));
  TestWorker& again = NewWorker();
  again.Join("a");
  ASSERT_TRUE(again.welcome.has_value()) << again.words();
  EXPECT_EQ(again.welcome->epoch(), 2u);
  EXPECT_EQ(again.welcome->incarnation(), 2u);
  EXPECT_EQ(again.welcome->main_round(), 4u);
  again.BringState();
  EXPECT_EQ(again.Digest(), digest);
  EXPECT_FALSE(again.open.has_value()) << "it was paused";
  EXPECT_TRUE(run_->Resume(clock_.Now()).ok());
  for (uint64_t round = 4; round < 10; ++round) {
    ReadAll();
    vote(again, round);
  }
  ReadAll();
  ASSERT_TRUE(run_->ended());
  EXPECT_TRUE(run_->end_status().ok());
  const uint64_t stopped = again.Digest();

  StartRun(options);
  TestWorker& whole = Joined("a");
  for (uint64_t round = 0; round < 10; ++round) {
    ReadAll();
    vote(whole, round);
  }
  ReadAll();
  EXPECT_EQ(stopped, whole.Digest());
}

TEST_F(RunVoteTest, X0IsLetGoOfWhenTheRuleNeedsItNoMoreAndTheRunGoesOnFromAStateWithoutIt) {
  const auto rule = [](uint64_t x0_main_rounds) {
    auto made = std::make_unique<ScriptedRule>(std::vector<StepsizeDecision>{
        {.gamma = 0.5f, .rho = 1.25f}, {.gamma = 0.25f}, {.gamma = 0.125f}, {.gamma = 0.5f}});
    made->x0_main_rounds_ = x0_main_rounds;
    return made;
  };
  StartRun(Options(), rule(1));
  TestWorker& w = NewWorker();
  w.Join("w");
  w.BringState();
  w.KeepX0(w.x);
  for (uint64_t round = 0; round < 3; ++round) {
    ReadAll();
    ASSERT_TRUE(w.open.has_value()) << round;
    EXPECT_EQ(w.open->x0_over(), round >= 1);
    EXPECT_EQ(replica_->has_x0(), round < 2) << "the commit of round 1 is the first without x0";
    if (round == 2) {
      EXPECT_TRUE(run_->Pause(clock_.Now()).ok());
    }
    w.Vote(RandomBits(kCoordinates, round));
  }
  ReadAll();
  auto state = run_->State();
  ASSERT_TRUE(state.ok()) << Describe(state.status());
  EXPECT_EQ(state->x0, nullptr);
  const uint64_t digest = w.Digest();
  run_.reset();

  state->epoch = Epoch(2);
  StartRun(Options(), rule(1), *state);
  TestWorker& again = NewWorker();
  again.Join("w");
  EXPECT_TRUE(run_->Resume(clock_.Now()).ok());
  again.BringState();
  EXPECT_EQ(again.Digest(), digest);
  ReadAll();
  ASSERT_TRUE(again.open.has_value());
  EXPECT_TRUE(again.open->x0_over());
  again.Vote(RandomBits(kCoordinates, 3));
  ReadAll();
  EXPECT_EQ(again.commits.size(), 1u);
  run_.reset();

  const absl::Status refused =
      Run::Create(Options(), Parts(rule(4)), *state, clock_.Now()).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(ToStd(refused.message())), HasSubstr("lacks the starting parameters"));
}

TEST_F(RunVoteTest, AStateIsGivenBetweenTwoRoundsOnly) {
  StartRun();
  EXPECT_TRUE(run_->State().ok()) << "before the first worker";
  TestWorker& w = Joined("w");
  ReadAll();
  EXPECT_EQ(run_->State().status().code(), absl::StatusCode::kFailedPrecondition);
  applier_works_ = false;
  EXPECT_TRUE(run_->Pause(clock_.Now()).ok());
  w.Vote(RandomBits(kCoordinates, 1));
  EXPECT_EQ(run_->State().status().code(), absl::StatusCode::kFailedPrecondition);
  applier_works_ = true;
  Settle();
  EXPECT_TRUE(run_->State().ok());
}

// ---- durability ---------------------------------------------------------------------------------

// Released when the test says so.
class HeldDurability final : public Durability {
 public:
  void Append(std::shared_ptr<const CommitRecord> record) override { round = record->round; }
  std::optional<Round> round;
};

TEST_F(RunVoteTest, NobodyHearsOfACommitBeforeItIsDurable) {
  HeldDurability held;
  durability_ = &held;
  StartRun();
  TestWorker& w = Joined("w");
  ReadAll();
  w.Vote(RandomBits(kCoordinates, 1));
  ReadAll();
  EXPECT_EQ(held.round, Round(0));
  EXPECT_TRUE(w.commits.empty());
  EXPECT_FALSE(w.verdict.empty()) << "advice may go";
  EXPECT_EQ(committed(), Round(0));
  run_->Handle(clock_.Now(), DurableIn{Round(0)});
  Settle();
  ReadAll();
  EXPECT_EQ(w.commits.size(), 1u);
  EXPECT_EQ(committed(), Round(1));
  EXPECT_EQ(w.open->round(), 1u);
}

}  // namespace
}  // namespace signvote::run
