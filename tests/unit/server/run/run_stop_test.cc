// The operator's stop, in every phase of a run: no socket, no thread.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "common/exit_codes.h"
#include "tests/unit/server/run/run_fixture.h"

namespace signvote::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

class RunStopTest : public RunTest {
 protected:
  // How long after the stop the run ended; nullopt: not within a minute.
  std::optional<Duration> EndsAfter() {
    const Time begin = clock_.Now();
    run_->RequestStop(begin);
    Settle();
    for (int ticks = 0; !run_->ended(); ++ticks) {
      const std::optional<Time> next = run_->NextTick();
      if (!next.has_value() || *next - begin > minutes(1) || ticks > 1000) return std::nullopt;
      clock_.Advance(std::max(Duration::zero(), *next - clock_.Now()));
      run_->Handle(clock_.Now(), TickIn{});
      Settle();
    }
    return clock_.Now() - begin;
  }
};

TEST_F(RunStopTest, AStopEndsEveryPhaseInTime) {
  const Duration at_once = Duration::zero();
  const Duration open_round = seconds(8);
  struct Case {
    const char* phase;
    std::function<void(RunStopTest&)> reach;
    Duration at_most;
  };
  const Case cases[] = {
      {"before the first worker", [](RunStopTest&) {}, at_once},
      {"during an upload",
       [](RunStopTest& t) {
         TestWorker& w = t.NewWorker();
         w.Join("w");
         auto call = std::make_shared<FakeCall>();
         t.Give({.peer = w.peer->id(), .what = CallAsked{CallKind::kUpload, call}});
       },
       at_once},
      {"too few workers", [](RunStopTest& t) { t.Joined("w"); }, at_once},
      {"during a fetch",
       [](RunStopTest& t) {
         t.Joined("w");
         TestWorker& b = t.NewWorker();
         b.Join("b");
         b.AskFetch();
       },
       at_once},
      {"a round without ballots",
       [](RunStopTest& t) {
         t.Joined("a");
         t.Joined("b");
       },
       open_round},
      {"chunks closed and scalars missing",
       [](RunStopTest& t) {
         TestWorker& a = t.Joined("a");
         TestWorker& b = t.Joined("b");
         t.ReadAll();
         for (TestWorker* w : {&a, &b}) {
           const v1::RoundOpen open = *w->open;
           for (uint32_t k = 0; k < 3; ++k) {
             w->SendChunk(k, RandomBits(kCoordinates, 1));
             w->open = open;
           }
         }
       },
       open_round},
      {"tallies that hang",
       [](RunStopTest& t) {
         TestWorker& a = t.Joined("a");
         TestWorker& b = t.Joined("b");
         t.ReadAll();
         t.tally_works_ = false;
         a.Vote(RandomBits(kCoordinates, 1));
         b.Vote(RandomBits(kCoordinates, 1));
       },
       open_round},
      {"the applier is full",
       [](RunStopTest& t) {
         TestWorker& a = t.Joined("a");
         TestWorker& b = t.Joined("b");
         t.applier_works_ = false;
         for (int i = 0; i < 10; ++i) {
           t.ReadAll();
           if (a.open.has_value()) a.Vote(RandomBits(kCoordinates, 1));
           if (b.open.has_value()) b.Vote(RandomBits(kCoordinates, 1));
         }
       },
       at_once},
      {"backing off",
       [](RunStopTest& t) {
         TestWorker& a = t.Joined("a");
         TestWorker& b = t.Joined("b");
         for (int i = 0; i < 2; ++i) {
           t.ReadAll();
           if (a.open.has_value()) a.Abstain(AbstainReason::kOther);
           if (b.open.has_value()) b.Abstain(AbstainReason::kOther);
         }
       },
       at_once},
      {"paused",
       [](RunStopTest& t) {
         t.Joined("a");
         (void)t.run_->Pause(t.clock_.Now());
         t.Joined("b");
       },
       at_once},
      {"final digests missing",
       [](RunStopTest& t) {
         TestWorker& a = t.Joined("a");
         TestWorker& b = t.Joined("b");
         a.gives_digests = b.gives_digests = false;
         for (int i = 0; i < 20; ++i) {
           t.ReadAll();
           if (a.open.has_value()) a.Vote(RandomBits(kCoordinates, 1));
           if (b.open.has_value()) b.Vote(RandomBits(kCoordinates, 1));
         }
         EXPECT_FALSE(t.run_->ended());
       },
       at_once},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.phase);
    applier_works_ = tally_works_ = true;
    RunOptions options = Options();
    options.workers_min = 2;
    options.main_rounds_max = 20;
    options.linger = minutes(10);
    options.stop_wait = open_round;
    options.model.sizes.catch_up_bytes = 0;
    StartRun(std::move(options));
    c.reach(*this);
    const std::optional<Duration> took = EndsAfter();
    ASSERT_TRUE(took.has_value());
    EXPECT_LE(*took, c.at_most);
    EXPECT_TRUE(run_->end_status().ok()) << Describe(run_->end_status());
    run_->CloseStreams(clock_.Now());
    Settle();
    EXPECT_EQ(run_->streams(), 0u);
  }
}

TEST_F(RunStopTest, AStopLetsTheOpenRoundCompleteAndTellsTheWorkers) {
  StartRun();
  TestWorker& w = Joined("w");
  ReadAll();
  run_->RequestStop(clock_.Now());
  EXPECT_FALSE(run_->ended());
  w.Vote(RandomBits(kCoordinates, 1));
  ReadAll();
  EXPECT_EQ(w.commits.size(), 1u);
  ASSERT_TRUE(run_->ended());
  run_->CloseStreams(clock_.Now());
  EXPECT_EQ(w.code(), absl::StatusCode::kCancelled);
}

TEST_F(RunStopTest, MostFinalReplicasAgainstTheServersEndTheRunAndItsWorkersAsAMismatch) {
  RunOptions options = Options();
  options.main_rounds_max = 1;
  options.workers_min = 3;
  StartRun(std::move(options));
  const std::vector<TestWorker*> workers = {&Joined("a"), &Joined("b"), &Joined("c")};
  ReadAll();
  workers[0]->x[100] = workers[1]->x[100] = 7;
  for (TestWorker* w : workers) w->Vote(RandomBits(kCoordinates, 1));
  ReadAll();
  ASSERT_TRUE(run_->ended());
  EXPECT_EQ(ExitCodeFor(run_->end_status()), ExitCode::kReplicaMismatch);
  run_->CloseStreams(clock_.Now());
  Settle();
  for (TestWorker* w : workers) {
    EXPECT_TRUE(w->finish);
    EXPECT_EQ(w->code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ExitCodeFor(*w->peer->closed), ExitCode::kReplicaMismatch);
  }
}

TEST_F(RunStopTest, ARunThatIsOverIsNotStoppedByTheOperator) {
  RunOptions options = Options();
  options.main_rounds_max = 1;
  StartRun(std::move(options));
  TestWorker& w = Joined("w");
  w.gives_digests = false;
  ReadAll();
  w.Vote(RandomBits(kCoordinates, 1));
  ReadAll();
  EXPECT_TRUE(w.finish);
  run_->RequestStop(clock_.Now());
  ASSERT_TRUE(run_->ended());
  run_->Watch(clock_.Now(), 0, Duration::zero(), [](absl::StatusOr<WatchView> view) {
    EXPECT_EQ(view->events.back().kind, EventKind::kEnded);
    EXPECT_EQ(view->events.back().reason, "");
  });
  run_->CloseStreams(clock_.Now());
  EXPECT_TRUE(w.peer->closed->ok());
}

TEST_F(RunStopTest, AWorkerThatIsStillJoiningWhenTheRunEndsIsToldThatItHasFinished) {
  RunOptions options = Options();
  options.main_rounds_max = 3;
  StartRun(std::move(options));
  TestWorker& first = Joined("first");
  TestWorker& late = NewWorker();
  late.Join("late");
  for (int i = 0; i < 3; ++i) {
    first.ReadAll();
    first.Vote(RandomBits(kCoordinates, 1));
  }
  first.ReadAll();
  ASSERT_TRUE(run_->ended());
  late.ReadAll();
  EXPECT_TRUE(late.finish);
}

// Goal: no worker looks for a server whose run is over.
TEST_F(RunStopTest, ARunThatWaitedTooLongTellsItsWorkersThatItIsOver) {
  RunOptions options = Options();
  options.wait_timeout = minutes(5);
  options.workers_min = 2;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  Pass(minutes(12));  // its arrival renews the wait
  ASSERT_TRUE(run_->ended());
  run_->CloseStreams(clock_.Now());
  Settle();
  ASSERT_TRUE(a.closed());
  EXPECT_EQ(a.code(), absl::StatusCode::kDeadlineExceeded) << a.words();
  EXPECT_THAT(a.words(), ::testing::HasSubstr("--wait-timeout"));
}

TEST_F(RunStopTest, AfterTheEndAWorkerThatMissesCommitsStillGetsThem) {
  RunOptions options = Options();
  options.main_rounds_max = 2;
  options.workers_min = 2;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  b.gives_digests = false;  // keeps the finished run waiting
  const std::vector<uint8_t> bits = RandomBits(kCoordinates, 1);
  VoteRound({{&a, bits}, {&b, bits}});
  const std::vector<float> at_one = a.x;
  const std::vector<Round> pieces_at_one = a.pieces;
  a.Break();
  VoteRound({{&b, bits}});
  ASSERT_TRUE(b.finish);
  ASSERT_FALSE(run_->ended());

  TestWorker& again = NewWorker();
  again.x = at_one;
  again.pieces = pieces_at_one;
  v1::Join join = again.MakeJoin("a");
  join.set_run_id(std::string(run_->run_id().bytes()));
  join.set_epoch(1);
  join.set_round(1);
  again.Join(join);
  again.BringState();
  ReadAll();
  EXPECT_EQ(again.welcome->state(), v1::Welcome::STATE_KEEP);
  ASSERT_EQ(again.commits.size(), 1u);
  EXPECT_TRUE(again.finish);
  EXPECT_EQ(again.Digest(), b.Digest());
}

TEST_F(RunStopTest, WatchersSeeTheEnd) {
  StartRun();
  Joined("a");
  std::vector<std::string> seen;
  const auto watch = [&](Duration wait) {
    run_->Watch(clock_.Now(), 0, wait, [&](absl::StatusOr<WatchView> view) {
      seen.push_back(view.ok() ? std::to_string(view->events.size())
                               : std::string(ToStd(view.status().message())));
    });
  };
  watch(seconds(20));
  EXPECT_TRUE(seen.empty());
  Pass(seconds(19));
  EXPECT_TRUE(seen.empty());
  Pass(seconds(2));
  EXPECT_EQ(seen.size(), 1u) << "its time came";
  for (int i = 0; i < 64; ++i) watch(minutes(1));
  EXPECT_EQ(seen.size(), 1u);
  watch(minutes(1));
  EXPECT_EQ(seen.size(), 2u) << "too many wait already";
  run_->RequestStop(clock_.Now());
  Pass(seconds(11));
  EXPECT_EQ(seen.size(), 66u);
}

}  // namespace
}  // namespace signvote::run
