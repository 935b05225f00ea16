// How commits reach workers that fetch, catch up, or cannot keep up: no socket, no thread.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/server/run/run_fixture.h"

namespace signvote::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

class RunFeedTest : public RunTest {
 protected:
  // The ring keeps four rounds.
  static RunOptions ShortRing() {
    RunOptions options = Options();
    options.model.sizes.catch_up_bytes = 0;
    return options;
  }
  static RunOptions Fetching(FetchBudget::Options fetches) {
    RunOptions options = Options();
    options.fetches = fetches;
    return options;
  }
  void Rounds(TestWorker& voter, int count) {
    for (int i = 0; i < count; ++i) {
      voter.ReadAll();
      ASSERT_TRUE(voter.open.has_value());
      voter.Vote(RandomBits(kCoordinates, voter.open->round()));
    }
    voter.ReadAll();
  }
};

// Commits follow on the stream while the pieces come: one transfer is enough, however long it
// lasts.
TEST_F(RunFeedTest, AFetchMayLastLongerThanTheRingKeepsCommits) {
  StartRun(ShortRing());
  TestWorker& a = Joined("a");
  Rounds(a, 3);
  TestWorker& b = NewWorker();
  b.Join("b");
  ASSERT_EQ(b.welcome->state(), v1::Welcome::STATE_FETCH);
  b.AskFetch();
  b.CopyPiece(0);
  for (int i = 0; i < 25; ++i) {
    Rounds(a, 1);
    b.ReadAll();
  }
  b.CopyPiece(1);
  b.EndFetch();
  Rounds(a, 1);
  b.ReadAll();
  EXPECT_FALSE(b.resync.has_value());
  EXPECT_FALSE(b.closed()) << b.words();
  b.Ready(b.lowest());
  ReadAll();
  EXPECT_EQ(b.Digest(), a.Digest());
  ASSERT_TRUE(b.open.has_value() || a.open.has_value());
  a.Vote(RandomBits(kCoordinates, 77));
  ReadAll();
  EXPECT_TRUE(b.open.has_value()) << "a member of the next round";
  EXPECT_EQ(b.Digest(), a.Digest());
}

TEST_F(RunFeedTest, AFetchThatTheRoundsOutrunSaysWhichBudgetWouldHelp) {
  StartRun(ShortRing());
  TestWorker& a = Joined("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  b.peer->network_takes = false;
  b.peer->queued = size_t{2} << 20;  // a worker that reads nothing but pieces
  b.AskFetch();
  b.CopyPiece(0);
  Rounds(a, 4);
  EXPECT_FALSE(b.closed());
  Rounds(a, 2);
  EXPECT_EQ(b.code(), absl::StatusCode::kResourceExhausted);
  // One more round than was kept; b would have needed it.
  EXPECT_THAT(b.words(), AllOf(HasSubstr("5 rounds behind is more than the 4"),
                               HasSubstr("it takes 187505 bytes (--catch-up-bytes)")));
  ASSERT_TRUE(b.call->ended.has_value()) << "the transfer ends with it";
  EXPECT_EQ(b.call->ended->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(a.closed());
}

// One fetch mends a replica that is too old; who has fetched and is outrun again would be so for ever.
TEST_F(RunFeedTest, WhoHasFetchedAndFallsBehindAgainIsToldWhatWouldHelp) {
  StartRun(ShortRing());
  TestWorker& a = Joined("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  b.Fetch();
  b.peer->network_takes = false;
  b.peer->queued = size_t{2} << 20;
  Rounds(a, 2);  // which it must read before it is ready
  b.Ready(Round(0));
  Rounds(a, 4);
  EXPECT_EQ(b.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(b.words(), HasSubstr("--catch-up-bytes"));
  b.ReadAll();
  EXPECT_FALSE(b.resync.has_value());
  EXPECT_FALSE(a.closed());
}

// Rounds of 100 ms of one member, and a worker that fetches and whose queue nobody empties.
class RunGivesWayTest : public RunFeedTest {
 protected:
  void SetUp() override {
    RunOptions options = Options();
    options.model.sizes.catch_up_bytes = 8 * BytesForBits(kCoordinates);
    StartRun(std::move(options));
    a_ = &Joined("a");
    for (int i = 0; i < 3; ++i) ARound();
    b_ = &NewWorker();
    b_->Join("b");
    b_->peer->network_takes = false;
    b_->peer->queued = size_t{2} << 20;
    b_->AskFetch();
    for (uint64_t i = 0; i < run::Run::kFetchingBehind; ++i) {
      ARound();
      ASSERT_TRUE(a_->open.has_value()) << "it may yet keep up";
    }
    ARound();
  }
  void ARound() {
    a_->ReadAll();
    ASSERT_TRUE(a_->open.has_value());
    clock_.Advance(milliseconds(100));
    a_->Vote(RandomBits(kCoordinates, a_->open->round()));
    a_->ReadAll();
  }
  bool Opens() {
    a_->ReadAll();
    return a_->open.has_value();
  }
  TestWorker* a_ = nullptr;
  TestWorker* b_ = nullptr;
};

TEST_F(RunGivesWayTest, ARoundOfNMembersTakesAtMostNPlusTwoNthsOfItsTime) {
  EXPECT_FALSE(Opens());
  Pass(milliseconds(199));
  EXPECT_FALSE(Opens());
  Pass(milliseconds(1));
  EXPECT_TRUE(Opens());
  // A round that took longer by itself gives less: 300 ms are the most.
  clock_.Advance(milliseconds(150));
  ARound();
  EXPECT_FALSE(Opens());
  Pass(milliseconds(50));
  EXPECT_TRUE(Opens());
}

TEST_F(RunGivesWayTest, TheNextRoundOpensAsSoonAsTheNewcomerHasEverything) {
  EXPECT_FALSE(Opens());
  b_->peer->network_takes = true;
  Settle();
  EXPECT_FALSE(Opens()) << "its transfer needs the link as well";
  b_->CopyPiece(0);
  b_->CopyPiece(1);
  b_->EndFetch();
  b_->ReadAll();
  b_->Ready(b_->lowest());
  EXPECT_TRUE(Opens());
  ReadAll();
  a_->Vote(RandomBits(kCoordinates, 77));
  ReadAll();
  EXPECT_TRUE(a_->open.has_value());
  EXPECT_TRUE(b_->open.has_value());
  EXPECT_EQ(b_->Digest(), a_->Digest());
}

TEST_F(RunGivesWayTest, RoundsGoOnWithoutANewcomerThatIsSlowByItself) {
  uint32_t given = 1;
  for (; given < run::Run::kGiveWayRounds + 10 && !Opens(); ++given) {
    Pass(milliseconds(200));
    // It follows, and never ends its transfer.
    b_->peer->queued = 0;
    b_->peer->network_takes = true;
    ARound();
  }
  EXPECT_EQ(given, run::Run::kGiveWayRounds + 1);
  ARound();
  EXPECT_TRUE(Opens());
  EXPECT_FALSE(b_->closed());
}

// A member that joins, reads slowly, leaves and comes again must not make everybody slow for good.
TEST_F(RunGivesWayTest, WhoComesAgainGetsNoFurtherShareOfTheOthersTime) {
  for (uint32_t i = 0; i < run::Run::kGiveWayRounds && !Opens(); ++i) {
    Pass(milliseconds(200));
    b_->peer->queued = 0;
    b_->peer->network_takes = true;
    ARound();
  }
  ASSERT_TRUE(Opens());
  b_->Break();
  TestWorker& again = NewWorker();
  again.Join("b");
  again.peer->network_takes = false;
  again.peer->queued = size_t{2} << 20;
  again.AskFetch();
  for (uint64_t i = 0; i < run::Run::kFetchingBehind + 2; ++i) {
    ARound();
    EXPECT_TRUE(Opens()) << i;
  }
}

TEST_F(RunGivesWayTest, NobodyWaitsForOneThatHasLeft) {
  EXPECT_FALSE(Opens());
  b_->Break();
  EXPECT_TRUE(Opens());
}

TEST_F(RunGivesWayTest, AStopDoesNotWait) {
  EXPECT_FALSE(Opens());
  run_->RequestStop(clock_.Now());
  Settle();
  EXPECT_FALSE(Opens());
  EXPECT_TRUE(run_->ended());
}

TEST_F(RunGivesWayTest, APauseDoesNotWait) {
  EXPECT_FALSE(Opens());
  ASSERT_TRUE(run_->Pause(clock_.Now()).ok());
  Settle();
  EXPECT_FALSE(Opens());
  EXPECT_EQ(run_->Snapshot(clock_.Now()).phase, PagePhase::kPaused);
}

TEST_F(RunGivesWayTest, OneThatIsOutrunAllTheSameIsTheOnlyOneToPay) {
  for (int i = 0; i < 8 && !b_->closed(); ++i) {
    Pass(milliseconds(200));
    ARound();
  }
  EXPECT_EQ(b_->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Opens());
}

// A worker that has its replica and must only read what it missed.
TEST_F(RunFeedTest, RoundsGiveWayToOneThatCatchesUp) {
  StartRun(ShortRing());
  TestWorker& a = Joined("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  b.Fetch();
  b.peer->network_takes = false;
  b.peer->queued = size_t{2} << 20;
  Rounds(a, 1);
  b.Ready(Round(0));
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(a.open.has_value());
    clock_.Advance(milliseconds(100));
    Rounds(a, 1);
  }
  EXPECT_FALSE(a.open.has_value());
  b.peer->network_takes = true;
  Settle();
  ReadAll();
  EXPECT_TRUE(a.open.has_value());
  EXPECT_EQ(b.Digest(), a.Digest());
}

TEST_F(RunFeedTest, AFetchedStateFollowsFromTheRingUntilItIsReady) {
  RunOptions options = Options();
  options.model.sizes.catch_up_bytes = 8 * BytesForBits(kCoordinates);
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  b.peer->network_takes = false;
  b.peer->queued = size_t{2} << 20;
  b.Fetch();
  Rounds(a, 7);
  ASSERT_FALSE(b.closed());
  b.peer->network_takes = true;
  Settle();
  b.Ready(Round(0));
  ReadAll();
  EXPECT_EQ(b.Digest(), a.Digest());
}

TEST_F(RunFeedTest, WhoFetchesLeavesAndComesAgainHasOneBudgetOfFetches) {
  StartRun(Fetching({.burst = 3, .refill = seconds(30)}));
  Joined("a");
  for (int i = 0; i < 3; ++i) {
    TestWorker& liar = NewWorker();
    liar.Join("liar");
    liar.Fetch();
    liar.Leave("and comes again");
  }
  TestWorker& liar = NewWorker();
  liar.Join("liar");
  auto call = liar.AskFetch();
  EXPECT_EQ(call->replica, nullptr);
  ASSERT_TRUE(call->ended.has_value());
  EXPECT_EQ(call->ended->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(call->ended->message()), HasSubstr("try again in 30 s"));
  Joined("honest");
  Pass(seconds(30));
  liar.Fetch();
}

TEST_F(RunFeedTest, InventedNamesSpendTheBudgetOfTheirHostAndNobodyElses) {
  RunOptions options = Fetching({.burst = 1, .refill = seconds(60)});
  options.model.sizes.workers_max = 4;
  StartRun(std::move(options));
  Joined("a");
  const auto come = [&](const std::string& name, const std::string& port) -> TestWorker& {
    TestWorker& worker =
        NewWorker(kCoordinates, {.address = "ipv4:10.9.9.9:" + port, .host = "10.9.9.9"});
    worker.Join(name);
    return worker;
  };
  for (int i = 0; i < 4; ++i) {
    TestWorker& liar = come("liar" + std::to_string(i), std::to_string(1000 + i));
    liar.Fetch();
    liar.Leave("and comes again");
  }
  TestWorker& liar = come("liar", "2000");
  EXPECT_EQ(liar.AskFetch()->replica, nullptr);
  EXPECT_THAT(std::string(liar.call->ended->message()), HasSubstr("10.9.9.9"));
  Joined("honest");  // of another host
  Pass(seconds(15));
  liar.Fetch();
}

TEST_F(RunFeedTest, ATransferEndsWithItsStream) {
  StartRun();
  Joined("a");
  for (const bool leaves : {false, true}) {
    TestWorker& b = NewWorker();
    b.Join("b");
    const auto call = b.AskFetch();
    ASSERT_NE(call->replica, nullptr);
    if (leaves) {
      b.Leave("enough");
    } else {
      b.Break();
    }
    ASSERT_TRUE(call->ended.has_value());
    EXPECT_EQ(call->ended->code(), absl::StatusCode::kAborted);
    EXPECT_EQ(call.use_count(), 2) << "the test's two; the run has let go";
  }
}

// ---- admission ----------------------------------------------------------------------------------

TEST_F(RunFeedTest, ANewcomerIsReadyWhenItHasReadWhatItMissed) {
  StartRun();
  TestWorker& a = Joined("a");
  Rounds(a, 1);
  TestWorker& b = NewWorker();
  b.Join("b");
  b.Fetch();
  Rounds(a, 10);
  b.answers_pings = false;
  b.Ready(Round(1));
  Rounds(a, 3);
  b.ReadAll();
  EXPECT_GE(b.pings, 1);
  EXPECT_EQ(run_->Snapshot(clock_.Now()).joins, 1u)
      << "what is queued is not read: b may be far behind";
  // It reads at last.
  TestWorker& c = NewWorker();
  c.Join("c");
  c.Fetch();
  Rounds(a, 10);
  c.Ready(Round(14));
  c.ReadAll();
  EXPECT_EQ(c.pings, 1);
  EXPECT_EQ(run_->Snapshot(clock_.Now()).joins, 2u);
  Rounds(a, 1);
  ReadAll();
  EXPECT_TRUE(c.open.has_value());
}

TEST_F(RunFeedTest, ANewcomerThatMissedOneRoundIsReadyAtOnce) {
  StartRun();
  TestWorker& a = Joined("a");
  Rounds(a, 5);
  TestWorker& b = NewWorker();
  b.Join("b");
  b.Fetch();
  Rounds(a, 1);
  b.Ready(Round(5));
  EXPECT_EQ(run_->Snapshot(clock_.Now()).joins, 2u);
  b.ReadAll();
  EXPECT_EQ(b.pings, 0);
  EXPECT_EQ(b.Digest(), a.Digest());
}

// Rounds shorter than a worker's round trip must not keep it out for ever: it is let in behind by one.
TEST_F(RunFeedTest, AFarWorkerIsLetInAfterAFewAnswers) {
  StartRun();
  TestWorker& a = Joined("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  b.Fetch();
  Rounds(a, 10);
  b.Ready(Round(0));
  for (uint32_t i = 0; i < run::Run::kAdmitTries; ++i) {
    EXPECT_EQ(run_->Snapshot(clock_.Now()).joins, 1u) << i;
    Rounds(a, 3);  // while the ping is on its way
    clock_.Advance(milliseconds(50));
    b.Read(b.peer->messages.size());
  }
  EXPECT_EQ(run_->Snapshot(clock_.Now()).joins, 2u);
  EXPECT_EQ(b.lowest(), committed()) << "everything was sent to it, and read at once";
}

TEST_F(RunFeedTest, OneThatAnswersSlowlyIsNotLetInUntilItHasReadWhatItMissed) {
  StartRun();
  TestWorker& a = Joined("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  b.Fetch();
  Rounds(a, 10);
  b.Ready(Round(0));
  for (uint32_t i = 0; i < 3 * run::Run::kAdmitTries; ++i) {
    Rounds(a, 3);
    // Every other answer is in time: eight in a row are wanted.
    clock_.Advance(i % 2 == 0 ? run::Run::kAdmitPong + milliseconds(1) : milliseconds(50));
    b.Read(b.peer->messages.size());
    EXPECT_EQ(run_->Snapshot(clock_.Now()).joins, 1u) << i;
  }
  Rounds(a, 1);
  b.ReadAll();
  EXPECT_EQ(run_->Snapshot(clock_.Now()).joins, 2u);
}

// ---- those who cannot keep up -------------------------------------------------------------------

TEST_F(RunFeedTest, AVerdictLargerThanTheSessionsBufferReachesEverybody) {
  RunOptions options = Options();
  options.model.sizes.session_buffer_bytes = 20'000;  // a chunk fits, a verdict of 37,501 does not
  options.model.sizes.catch_up_bytes = uint64_t{64} << 20;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  ReadAll();
  const std::vector<uint8_t> bits = RandomBits(kCoordinates, 3);
  a.Vote(bits);  // b has its first seat in the next round
  Settle();
  ReadAll();
  for (int i = 0; i < 2; ++i) {
    a.peer->network_takes = b.peer->network_takes = false;
    a.Vote(bits);
    b.Vote(bits);
    a.peer->network_takes = b.peer->network_takes = true;
    Settle();
    ReadAll();
  }
  EXPECT_EQ(committed(), Round(3));
  TestWorker& c = NewWorker();
  c.Join("c");
  c.Fetch();
  for (int i = 0; i < 3; ++i) {
    a.Vote(bits);
    b.Vote(bits);
    a.ReadAll();
    b.ReadAll();
  }
  c.Ready(Round(3));
  ReadAll();
  EXPECT_FALSE(a.closed() || b.closed() || c.closed());
  EXPECT_EQ(c.Digest(), a.Digest());
}

TEST_F(RunFeedTest, AReaderThatFallsBehindFollowsFromTheRingAndVotesAgain) {
  RunOptions options = Options();
  options.model.sizes.session_buffer_bytes = 100'000;
  options.deadline.enabled = true;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& slow = Joined("slow");
  ReadAll();
  slow.peer->network_takes = false;
  slow.answers_pings = false;
  std::deque<v1::ServerMessage> unread;
  for (int i = 0; i < 12; ++i) {
    a.ReadAll();
    ASSERT_TRUE(a.open.has_value());
    a.Vote(RandomBits(kCoordinates, static_cast<uint64_t>(i)));
    Pass(minutes(2));  // the slow one's ballot is not waited for
  }
  a.ReadAll();
  EXPECT_EQ(committed(), Round(12));
  EXPECT_FALSE(slow.closed());
  EXPECT_LT(slow.peer->queued, 100'000 + 2 * BytesForBits(kCoordinates))
      << "its queue is bounded by the buffer and one verdict";
  slow.peer->network_takes = true;
  Settle();
  slow.ReadAll();
  EXPECT_EQ(slow.commits.size(), 12u);
  EXPECT_EQ(slow.Digest(), a.Digest());
  ASSERT_TRUE(slow.open.has_value()) << "it hears of the open round once it has what came before";
  EXPECT_EQ(slow.open->round(), 12u);
}

TEST_F(RunFeedTest, AWorkerThatReadsNothingIsClosedAndTheOthersGoOn) {
  RunOptions options = ShortRing();
  options.model.sizes.session_buffer_bytes = 100'000;
  options.deadline.enabled = true;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& deaf = Joined("deaf");
  a.ReadAll();
  deaf.peer->network_takes = false;
  for (int i = 0; i < 40 && !deaf.closed(); ++i) {
    a.ReadAll();
    ASSERT_TRUE(a.open.has_value());
    a.Vote(RandomBits(kCoordinates, static_cast<uint64_t>(i)));
    Pass(minutes(2));
  }
  EXPECT_EQ(deaf.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(deaf.words(), AllOf(HasSubstr("reads too slowly"), HasSubstr("join again")));
  EXPECT_EQ(run_->Snapshot(clock_.Now()).losses, 1u);
  EXPECT_FALSE(a.closed());
  Rounds(a, 2);
}

TEST_F(RunFeedTest, WhatIsSaidOfAReplicaThatIsGivenUpSaysNothingOfTheNext) {
  RunOptions options = Options();
  options.digest_every = 1;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  b.gives_digests = false;
  Rounds(a, 1);  // which was open before b came
  ReadAll();
  for (int i = 0; i < 2; ++i) {
    for (TestWorker* const w : {&a, &b}) {
      ASSERT_TRUE(w->open.has_value());
      w->Vote(RandomBits(kCoordinates, 3));
    }
    ReadAll();
  }
  Give({.peer = b.peer->id(), .what = DigestIn{Round(2), b.Digest() + 1}});
  b.ReadAll();
  ASSERT_TRUE(b.resync.has_value());
  // It was on its way before the worker knew.
  Give({.peer = b.peer->id(), .what = DigestIn{Round(3), b.Digest() + 1}});
  b.resync.reset();
  b.Fetch();
  b.Ready(b.lowest());
  ReadAll();
  EXPECT_FALSE(b.resync.has_value());
  Give({.peer = b.peer->id(), .what = DigestIn{Round(3), b.Digest()}});
  ReadAll();
  EXPECT_FALSE(b.resync.has_value());
  EXPECT_EQ(run_->Snapshot(clock_.Now()).digest_mismatches, 1u);
  EXPECT_EQ(b.Digest(), a.Digest());
}

TEST_F(RunFeedTest, AReplicaOfItsOwnThatIsTooOldIsFetchedAnew) {
  StartRun(ShortRing());
  TestWorker& a = Joined("a");
  Rounds(a, 2);
  TestWorker& b = NewWorker();
  v1::Join join = b.MakeJoin("b");
  join.set_run_id(std::string(run_->run_id().bytes()));
  join.set_round(2);
  join.set_epoch(1);
  b.Join(join);
  ASSERT_EQ(b.welcome->state(), v1::Welcome::STATE_KEEP);
  Rounds(a, 10);  // before it says Ready
  b.Ready(Round(2));
  b.ReadAll();
  ASSERT_TRUE(b.resync.has_value());
  b.Fetch();
  b.Ready(b.lowest());
  ReadAll();
  EXPECT_EQ(b.Digest(), a.Digest());
}

}  // namespace
}  // namespace signvote::run
