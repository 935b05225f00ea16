// Goal:   a run that writes a journal is taken up from it at any instant: by itself it goes on as if it
//         had not been interrupted, and workers keep what they have where that is the run's.
// Method: the run with a journal's log over a simulated disk, released by the test; no thread.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/exit_codes.h"
#include "server/journal/head.h"
#include "server/journal/recovery.h"
#include "server/journal/segment_log.h"
#include "server/journal/snapshot.h"
#include "server/run/run_recovery.h"
#include "tests/sim/sim_disk.h"
#include "tests/unit/server/run/run_fixture.h"

namespace signvote::run {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

// Writes everything at once; whoever owns it syncs, and releases.
class LogDurability final : public Durability {
 public:
  LogDurability(sim::SimDisk* disk, RunTest* test) : disk_(disk), test_(test) {}

  void Open(const journal::Recovered& recovered, const RunState& state) {
    auto opened = journal::SegmentLog::Open(
        disk_, 1 << 20, {.run_id = state.run_id, .epoch = state.epoch, .round = state.engine.round},
        recovered);
    ASSERT_TRUE(opened.ok()) << Describe(opened.status());
    log_ = *std::move(opened);
    has_snapshot_ = recovered.begun;
  }

  bool keeps_run() const override { return true; }
  void Begin(const v1::JournalHead& head,
             std::shared_ptr<const std::vector<float>> optimizer) override {
    if (!std::exchange(has_snapshot_, true)) {
      auto layout = journal::LayoutFrom(head.run());
      ASSERT_TRUE(layout.ok());
      journal::SnapshotView view{
          .head = &head, .layout = &*layout, .x = test_->replica_->x(), .x0 = {}};
      if (optimizer != nullptr) view.optimizer = *optimizer;
      ASSERT_TRUE(journal::WriteSnapshot(disk_, view, nullptr).ok());
    }
    Keep(log_->Begin(head.SerializeAsString(), 1 << 16));
  }
  void NoteName(const v1::JournalName& name) override {
    Keep(log_->Write(journal::LogNote{journal::RecordType::kName, name.SerializeAsString()}));
  }
  void NotePause(bool paused) override {
    v1::JournalPause pause;
    pause.set_paused(paused);
    Keep(log_->Write(journal::LogNote{journal::RecordType::kPause, pause.SerializeAsString()}));
  }
  void NoteChunk(Chunk chunk) override {
    ++chunks;
    Keep(log_->Write(chunk));
  }
  void NoteState(std::shared_ptr<const v1::RunState> state,
                 std::shared_ptr<const std::vector<float>> optimizer,
                 std::vector<Voters> voters) override {
    next_.after = std::move(state);
    next_.optimizer = std::move(optimizer);
    next_.voters = std::move(voters);
  }
  void Append(std::shared_ptr<const CommitRecord> record) override {
    EXPECT_NE(next_.after, nullptr) << "where the run stands comes before its commit";
    EXPECT_EQ(next_.after->engine().round(), record->round.value() + 1);
    waiting = record->round;
    next_.record = std::move(record);
    Keep(log_->Write(std::exchange(next_, {})));
  }

  int chunks = 0;
  std::optional<Round> waiting;  // to be released

 private:
  static void Keep(const absl::Status& status) { EXPECT_TRUE(status.ok()) << Describe(status); }

  sim::SimDisk* const disk_;
  RunTest* const test_;
  std::unique_ptr<journal::SegmentLog> log_;
  bool has_snapshot_ = false;
  journal::LogCommit next_;
};

class RunJournalTest : public RunTest {
 protected:
  static RunOptions Options() {
    RunOptions options = RunTest::Options();
    options.return_wait = seconds(60);
    options.workers_min = 2;
    options.main_rounds_max = 8;
    options.digest_every = 0;
    options.rule.schedule = "linear";
    return options;
  }

  // A server on the disk; false: nothing is there yet.
  bool Serve(RunOptions options = Options()) {
    NewTest();
    keeper_ = std::make_unique<LogDurability>(&disk_, this);
    durability_ = keeper_.get();
    auto recovered =
        journal::Recover(&disk_, {.recent_bytes = 1 << 24, .recent_max = 16}, Clock::System());
    EXPECT_TRUE(recovered.ok()) << Describe(recovered.status());
    RunState state{.run_id = RunId::FromRandom(1, 2)};
    state.begun = {{Epoch(1), Round(0)}};
    const bool there = recovered->run_id.has_value();
    if (there) {
      auto taken = TakeUp(*recovered);
      EXPECT_TRUE(taken.ok()) << Describe(taken.status());
      state = *std::move(taken);
    }
    keeper_->Open(*recovered, state);
    StartRunAgain(std::move(options), std::move(state));
    return there;
  }
  void StartRunAgain(RunOptions options, RunState state) {
    auto run = run::Run::Create(std::move(options), Parts(nullptr), std::move(state), clock_.Now());
    ASSERT_TRUE(run.ok()) << Describe(run.status());
    run_ = std::move(*run);
  }
  // What waits is durable.
  void Release() {
    if (!keeper_->waiting.has_value()) return;
    const Round round = *std::exchange(keeper_->waiting, std::nullopt);
    run_->Handle(clock_.Now(), DurableIn{round});
    Settle();
  }
  // Votes of the round at hand: the same whoever asks.
  static std::vector<uint8_t> Bits(uint64_t round, uint64_t worker) {
    return RandomBits(kCoordinates, 100 * round + worker);
  }
  void Vote(TestWorker& w, uint64_t worker) {
    ASSERT_TRUE(w.open.has_value());
    w.Vote(Bits(w.open->round(), worker));
  }
  // What a worker has of the run when its server goes.
  struct Held {
    std::vector<float> x;
    std::vector<Round> pieces;
    uint64_t round = 0, epoch = 0;  // of its last commit
  };
  static Held HeldBy(const TestWorker& w, const Held& before) {
    return {.x = w.x,
            .pieces = w.pieces,
            .round = w.lowest().value(),
            .epoch = w.commits.empty() ? before.epoch : w.commits.back().epoch()};
  }
  // It joins again with that.
  TestWorker& Back(const std::string& name, const Held& held) {
    TestWorker& w = NewWorker();
    w.x = held.x;
    w.pieces = held.pieces;
    v1::Join join = w.MakeJoin(name);
    join.set_run_id(std::string(run_->run_id().bytes()));
    join.set_round(held.round);
    join.set_epoch(held.epoch);
    w.Join(join);
    return w;
  }

  sim::SimDisk disk_{3};
  std::unique_ptr<LogDurability> keeper_;
};

TEST_F(RunJournalTest, ARunThatIsKilledInEveryRoundEndsAsOneThatIsNot) {
  // Undisturbed, without a journal.
  StartRun(Options());
  TestWorker& a0 = Joined("a");
  TestWorker& b0 = Joined("b");
  for (int round = 0; round < 8; ++round) {
    ReadAll();
    Vote(a0, 1);
    Vote(b0, 2);
    ReadAll();
  }
  ASSERT_TRUE(run_->ended());
  const uint64_t digest = a0.Digest();

  Held a_held, b_held;
  int kills = 0;
  for (; kills < 40; ++kills) {
    disk_.Begin(sim::SimDisk::Restart::kProcess);
    EXPECT_EQ(Serve(), kills > 0);
    TestWorker& a = kills == 0 ? Joined("a") : Back("a", a_held);
    TestWorker& b = kills == 0 ? Joined("b") : Back("b", b_held);
    if (kills > 0) {
      a.BringState();
      b.BringState();
    }
    ReadAll();
    if (committed() == Round(8)) {
      EXPECT_EQ(a.Digest(), digest);
      EXPECT_EQ(b.Digest(), digest);
      break;
    }
    Vote(a, 1);
    // By turns: before the commit is decided, before it is durable, before workers hear of it, behind it.
    const int when = kills % 4;
    if (when > 0) {
      Vote(b, 2);
      EXPECT_GT(keeper_->chunks, 0);
    }
    if (when > 1) Release();
    if (when > 2) ReadAll();
    a_held = HeldBy(a, a_held);
    b_held = HeldBy(b, b_held);
  }
  EXPECT_EQ(kills, 11) << "of four kills three leave a commit";
}

TEST_F(RunJournalTest, ACommitNamesThoseWhoseBallotsItCounted) {
  disk_.Begin(sim::SimDisk::Restart::kProcess);
  EXPECT_FALSE(Serve());
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  for (int round = 0; round < 3; ++round) {
    ReadAll();
    Release();
    ReadAll();
    Vote(a, 1);
    Vote(b, 2);
    ReadAll();
  }
  Release();
  std::map<uint32_t, std::string> names;
  std::vector<std::vector<std::string>> voters;
  const auto segments = journal::ListSegments(&disk_);
  ASSERT_TRUE(segments.ok());
  const auto visit = [&](const journal::Visited& v) {
    if (v.record.type == journal::RecordType::kName) {
      v1::JournalName name;
      EXPECT_TRUE(
          name.ParseFromArray(v.record.payload.data(), static_cast<int>(v.record.payload.size())));
      names[name.name().id()] = name.name().name();
    }
    if (v.record.type != journal::RecordType::kCommit) return absl::OkStatus();
    v1::JournalCommit commit;
    EXPECT_TRUE(
        commit.ParseFromArray(v.record.payload.data(), static_cast<int>(v.record.payload.size())));
    EXPECT_EQ(commit.voters_of_size(), 1);
    if (commit.voters_of_size() != 1) return absl::OkStatus();
    EXPECT_EQ(commit.voters_of(0).chunks(), static_cast<uint32_t>(commit.counted_size()));
    voters.emplace_back();
    for (const uint32_t id : commit.voters_of(0).ids()) voters.back().push_back(names[id]);
    return absl::OkStatus();
  };
  ASSERT_TRUE(journal::ScanSegments(&disk_, *segments, 0, visit).ok());
  ASSERT_EQ(voters.size(), 3u);
  for (const auto& of_round : voters) EXPECT_THAT(of_round, testing::ElementsAre("a", "b"));
}

TEST_F(RunJournalTest, AWorkerKeepsItsReplicaOverARestartUpToWhereTheOldServerEnded) {
  EXPECT_FALSE(Serve());
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  for (int round = 0; round < 3; ++round) {
    ReadAll();
    Vote(a, 1);
    Vote(b, 2);
    Release();
  }
  ReadAll();
  Held held = HeldBy(a, {});
  EXPECT_EQ(held.round, 3u);
  EXPECT_EQ(held.epoch, 1u);
  const uint64_t digest = a.Digest();
  disk_.Begin(sim::SimDisk::Restart::kProcess);
  ASSERT_TRUE(Serve());
  TestWorker& kept = Back("a", held);
  EXPECT_EQ(kept.welcome->state(), v1::Welcome::STATE_KEEP);
  kept.BringState();
  EXPECT_EQ(kept.Digest(), digest);
  // One that has a commit of the old server which this one does not know has another run's.
  held.round = 4;
  TestWorker& ahead = Back("b", held);
  EXPECT_EQ(ahead.welcome->state(), v1::Welcome::STATE_FETCH);
  EXPECT_EQ(run_->Snapshot(clock_.Now()).ahead, 1u);
  // So has one of a server of whom nothing is known.
  held.round = 3;
  held.epoch = 7;
  TestWorker& strange = Back("c", held);
  EXPECT_EQ(strange.welcome->state(), v1::Welcome::STATE_FETCH);
}

TEST_F(RunJournalTest, TheFirstRoundWaitsForThoseWhoWereThereAsLongAsItSays) {
  EXPECT_FALSE(Serve());
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  ReadAll();
  Vote(a, 1);
  Vote(b, 2);
  Release();
  disk_.Begin(sim::SimDisk::Restart::kProcess);
  ASSERT_TRUE(Serve());
  TestWorker& again = Joined("a");
  Tick(seconds(59));
  ReadAll();
  EXPECT_FALSE(again.open.has_value());
  EXPECT_THAT(run_->HealthNow().not_ready_because,
              HasSubstr("waiting for who was there before the server started again: b"));
  Tick(seconds(1));
  ReadAll();
  ASSERT_TRUE(again.open.has_value());
  EXPECT_EQ(again.open->round(), 1u);
}

TEST_F(RunJournalTest, EvictionsAndAPauseOutliveTheServer) {
  EXPECT_FALSE(Serve());
  (void)Joined("a");
  (void)Joined("b");
  ASSERT_TRUE(run_->Evict(clock_.Now(), "b").ok());
  ASSERT_TRUE(run_->Pause(clock_.Now()).ok());
  disk_.Begin(sim::SimDisk::Restart::kProcess);
  ASSERT_TRUE(Serve());
  EXPECT_EQ(run_->Snapshot(clock_.Now()).phase, PagePhase::kPaused);
  TestWorker& b = NewWorker();
  b.Join("b");
  EXPECT_EQ(b.code(), absl::StatusCode::kPermissionDenied) << b.words();
  TestWorker& a = NewWorker();
  a.Join("a");
  ASSERT_TRUE(a.welcome.has_value());
  EXPECT_EQ(a.welcome->incarnation(), 2u);
}

TEST_F(RunJournalTest, AJournalThatFailsEndsTheRunAfterTheWaitTimeoutAndTellsUntilThen) {
  RunOptions options = Options();
  options.wait_timeout = seconds(100);
  EXPECT_FALSE(Serve(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  ReadAll();
  Vote(a, 1);
  Vote(b, 2);
  run_->Handle(clock_.Now(), JournalFailed{absl::ResourceExhaustedError("no space left")});
  Settle();
  ReadAll();
  EXPECT_TRUE(a.commits.empty());
  ASSERT_FALSE(a.notices.empty());
  EXPECT_THAT(a.notices.back().text(), HasSubstr("journal cannot be written"));
  EXPECT_FALSE(run_->HealthNow().ready);
  EXPECT_THAT(run_->HealthNow().not_ready_because, HasSubstr("no space left"));
  Pass(seconds(99));
  EXPECT_FALSE(run_->ended());
  Pass(seconds(1));
  ASSERT_TRUE(run_->ended());
  EXPECT_EQ(ExitCodeFor(run_->end_status()), ExitCode::kBadInput);
  EXPECT_TRUE(a.commits.empty());
}

}  // namespace
}  // namespace signvote::run
