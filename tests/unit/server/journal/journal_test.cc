// Goal:   a commit is released when its durability policy says so and not before, a journal that failed
//         releases nothing, and snapshots let go of what nobody needs.
#include "server/journal/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "common/status.h"
#include "server/journal/journal_format.h"
#include "server/journal/snapshotter.h"
#include "tests/sim/sim_disk.h"
#include "tests/unit/server/journal/toy_journal.h"

namespace signvote::journal {
namespace {

using sim::SimDisk;
using ::testing::HasSubstr;
using testing::ToyPayload;
using testing::ToyRun;

constexpr Duration kLong = std::chrono::seconds(60);

class JournalTest : public ::testing::Test {
 protected:
  void Open(DurabilityMode mode) {
    auto recovered = Recover(&disk_, {}, clock_);
    ASSERT_TRUE(recovered.ok()) << Describe(recovered.status());
    auto opened = Journal::Open(
        &disk_, {.mode = mode, .segment_bytes = 16 << 10},
        {.run_id = run_.run_id(), .epoch = recovered->last_epoch.next(), .round = run_.round()},
        *recovered, clock_);
    ASSERT_TRUE(opened.ok()) << Describe(opened.status());
    journal_ = *std::move(opened);
    v1::EpochBegun& begun = *run_.run().add_begun();
    begun.set_epoch(recovered->last_epoch.value() + 1);
    begun.set_round(run_.round().value());
    journal_->Start(
        [this](Round round) {
          MutexLock lock(&mu_);
          released_ = round.next();
          changed_.NotifyAll();
        },
        [this](const absl::Status& status) {
          MutexLock lock(&mu_);
          failed_ = status;
          changed_.NotifyAll();
        });
  }
  void Begin() { journal_->Begin(run_.Head(), nullptr); }
  void Snapshot() {
    const v1::JournalHead head = run_.Head();
    ASSERT_TRUE(WriteSnapshot(&disk_, run_.View(&head), nullptr).ok());
    journal_->OnSnapshot(run_.round(), run_.round());
  }
  void Append() {
    const LogCommit commit = run_.Next();
    if (!commit.record->chunks.empty()) journal_->NoteChunk(testing::ChunkOf(*commit.record, 0));
    journal_->NoteState(commit.after, commit.optimizer, commit.voters);
    journal_->Append(commit.record);
    run_.Apply(commit);
    journal_->states()->OnApplied(run_.round(), std::chrono::milliseconds(1));
  }
  template <typename Predicate>
  bool Wait(const Predicate& predicate) {
    MutexLock lock(&mu_);
    return changed_.WaitUntil(&mu_, clock_, clock_->Now() + kLong, predicate);
  }
  bool WaitReleased(Round next) {
    return Wait([&]() { return released_ == next; });
  }
  Round released() {
    MutexLock lock(&mu_);
    return released_;
  }
  absl::Status failed() {
    MutexLock lock(&mu_);
    return failed_;
  }
  Recovered After(SimDisk::Restart restart) {
    disk_.Begin(restart);
    auto recovered = Recover(&disk_, {}, clock_);
    EXPECT_TRUE(recovered.ok()) << Describe(recovered.status());
    return recovered.ok() ? *std::move(recovered) : Recovered{};
  }

  Clock* const clock_ = Clock::System();
  SimDisk disk_{5};
  ToyRun run_{5, ToyPayload::kSigns, true};
  Mutex mu_;
  CondVar changed_;
  Round released_;
  absl::Status failed_;
  std::unique_ptr<Journal> journal_;  // last: its thread uses the rest
};

TEST_F(JournalTest, WhatIsReleasedOutlivesAPowerCut) {
  Open(DurabilityMode::kSync);
  Begin();
  Snapshot();
  for (uint64_t round = 1; round <= 5; ++round) {
    Append();
    ASSERT_TRUE(WaitReleased(Round(round)));
  }
  // The process ends without a word.
  disk_.KillAfter(0);
  journal_.reset();
  const Recovered recovered = After(SimDisk::Restart::kPower);
  EXPECT_EQ(recovered.round(), Round(5));
  EXPECT_EQ(*recovered.x, run_.x());
}

TEST_F(JournalTest, NothingIsReleasedOrWrittenBeforeTheFirstSnapshot) {
  Open(DurabilityMode::kSync);
  Begin();
  EXPECT_TRUE(journal_->needs_snapshot());
  Append();
  journal_->Stop();
  EXPECT_EQ(released(), Round(0));
  EXPECT_EQ(journal_->stats().commits, 0u);
  EXPECT_FALSE(After(SimDisk::Restart::kProcess).begun);
}

TEST_F(JournalTest, NamesThatCameBeforeTheRunBeganAreThereAfterAStop) {
  Open(DurabilityMode::kSync);
  journal_->NoteName(run_.AddName());
  journal_->NotePause(true);
  journal_->Stop();
  const Recovered recovered = After(SimDisk::Restart::kPower);
  EXPECT_FALSE(recovered.begun);
  ASSERT_EQ(recovered.head.run().names_size(), 1);
  EXPECT_EQ(recovered.head.run().names(0).name(), "w1");
  EXPECT_EQ(recovered.head.run().next_worker_id(), 2u);
  EXPECT_TRUE(recovered.head.run().paused());
  EXPECT_EQ(recovered.run_id, run_.run_id());
  EXPECT_EQ(recovered.last_epoch, Epoch(1));
}

TEST_F(JournalTest, ASyncThatFailsPoisonsTheJournal) {
  Open(DurabilityMode::kSync);
  Begin();
  Snapshot();
  Append();
  ASSERT_TRUE(WaitReleased(Round(1)));
  disk_.Set({.sync_fails = 1});
  Append();
  ASSERT_TRUE(Wait([this]() { return !failed_.ok(); }));
  disk_.Set({});
  Append();
  journal_->Stop();
  EXPECT_EQ(released(), Round(1));
  EXPECT_FALSE(journal_->status().ok());
  // What is there is whole: the commit that was never told may be, the one behind it is not.
  EXPECT_LE(After(SimDisk::Restart::kPower).round(), Round(2));
}

TEST_F(JournalTest, AFullDiskPoisonsTheJournal) {
  Open(DurabilityMode::kGroup);
  Begin();
  Snapshot();
  Append();
  ASSERT_TRUE(WaitReleased(Round(1)));
  disk_.Set({.capacity = 1});
  // The next segment finds no room.
  while (failed().ok()) {
    Append();
    ASSERT_TRUE(Wait([this]() { return !failed_.ok() || released_ == run_.round(); }));
  }
  EXPECT_TRUE(absl::IsResourceExhausted(failed()));
}

TEST_F(JournalTest, OfAGroupAKilledServerLosesNothing) {
  Open(DurabilityMode::kGroup);
  Begin();
  Snapshot();
  Append();
  ASSERT_TRUE(WaitReleased(Round(1)));
  // No sync ever succeeds from here on, and commits are released all the same, until one is due.
  disk_.Set({.sync_fails = 1});
  Append();
  ASSERT_TRUE(Wait([this]() { return released_ == Round(2) || !failed_.ok(); }));
  const Round told = released();
  ASSERT_TRUE(Wait([this]() { return !failed_.ok(); })) << "a sync is due within the interval";
  journal_.reset();
  EXPECT_GE(After(SimDisk::Restart::kProcess).round(), told);
  EXPECT_EQ(told, Round(2));
}

TEST_F(JournalTest, WithNoneCommitsAreReleasedAtOnceWhileFewWait) {
  Open(DurabilityMode::kNone);
  Begin();  // and no snapshot: everything waits
  for (size_t i = 1; i <= kQueuedCommits; ++i) {
    Append();
    EXPECT_EQ(released(), Round(i));
  }
  Append();
  EXPECT_EQ(released(), Round(kQueuedCommits));
  Snapshot();
  ASSERT_TRUE(WaitReleased(Round(kQueuedCommits + 1)));
}

TEST_F(JournalTest, ASecondServerGoesOnBehindTheFirst) {
  for (int server = 1; server <= 4; ++server) {
    Open(DurabilityMode::kSync);
    Begin();
    if (server == 1) Snapshot();
    for (int i = 0; i < 3; ++i) {
      Append();
      ASSERT_TRUE(WaitReleased(run_.round()));
    }
    journal_.reset();
    const Recovered recovered = After(SimDisk::Restart::kPower);
    EXPECT_EQ(recovered.last_epoch, Epoch(static_cast<uint64_t>(server)));
    EXPECT_EQ(recovered.round(), run_.round());
    EXPECT_EQ(*recovered.x, run_.x());
    ASSERT_EQ(recovered.head.run().begun_size(), server);
    EXPECT_EQ(recovered.head.run().begun(server - 1).round(),
              static_cast<uint64_t>(3 * (server - 1)));
  }
}

// ---- snapshots ----------------------------------------------------------------------------------

class SnapshotterTest : public JournalTest {
 protected:
  void StartSnapshots(uint64_t every, size_t keep) {
    snapshotter_ =
        std::make_unique<Snapshotter>(&disk_, SnapshotOptions{.every = every, .keep = keep},
                                      journal_.get(), std::vector<Round>(), clock_);
    snapshotter_->Start([this](const GiveUp&) -> absl::StatusOr<Snapshotter::Copied> {
      MutexLock lock(&copy_mu_);
      return Snapshotter::Copied{.round = run_.round(), .x = run_.x(), .x0 = run_.x0()};
    });
  }
  void AppendAndTell() {
    {
      MutexLock lock(&copy_mu_);
      Append();
    }
    snapshotter_->OnApplied();
    ASSERT_TRUE(WaitReleased(run_.round()));
  }
  // Looks again and again, for an event of the snapshotter's thread that nobody else hears of.
  bool WaitTaken(Round round) {
    const Time until = clock_->Now() + kLong;
    while (snapshotter_->stats().newest != round && clock_->Now() < until)
      clock_->SleepFor(std::chrono::milliseconds(1));
    return snapshotter_->stats().newest == round;
  }

  Mutex copy_mu_;
  std::unique_ptr<Snapshotter> snapshotter_;
};

TEST_F(SnapshotterTest, TheFirstOneLetsTheRunBegin) {
  Open(DurabilityMode::kSync);
  StartSnapshots(0, 2);
  Begin();
  AppendAndTell();
  snapshotter_->Stop();
  journal_.reset();
  const Recovered recovered = After(SimDisk::Restart::kPower);
  EXPECT_EQ(recovered.round(), Round(1));
  EXPECT_EQ(*recovered.x, run_.x());
}

TEST_F(SnapshotterTest, OldOnesGoWithTheSegmentsThatOnlyTheyNeeded) {
  Open(DurabilityMode::kSync);
  StartSnapshots(40, 2);
  Begin();
  snapshotter_->OnApplied();
  ASSERT_TRUE(WaitTaken(Round(0)));
  for (uint64_t round = 1; round <= 200; ++round) {
    AppendAndTell();
    if (round % 40 == 0) {
      ASSERT_TRUE(WaitTaken(Round(round)));
    }
  }
  snapshotter_->Stop();
  journal_.reset();
  const auto snapshots = ListSnapshots(&disk_);
  ASSERT_TRUE(snapshots.ok());
  EXPECT_EQ(*snapshots, (std::vector<Round>{Round(200), Round(160)}));
  const auto segments = ListSegments(&disk_);
  ASSERT_TRUE(segments.ok());
  EXPECT_GT(segments->front().info.sequence, 1u);
  EXPECT_LT(segments->front().info.first_round, Round(160));
  const Recovered recovered = After(SimDisk::Restart::kPower);
  EXPECT_EQ(recovered.round(), Round(200));
  EXPECT_EQ(*recovered.x, run_.x());
  EXPECT_LE(recovered.spares.size(), kSparesMax);
  const auto older = Recover(&disk_, {.until = Round(170)}, clock_);
  ASSERT_TRUE(older.ok()) << Describe(older.status());
}

TEST_F(SnapshotterTest, WhenTheFirstOneCannotBeWrittenTheJournalHasFailed) {
  Open(DurabilityMode::kSync);
  disk_.Set({.capacity = 20'000});
  StartSnapshots(0, 2);
  Begin();
  snapshotter_->OnApplied();
  ASSERT_TRUE(Wait([this]() { return !failed_.ok(); }));
  EXPECT_THAT(std::string(failed().message()), HasSubstr("first snapshot"));
  EXPECT_EQ(released(), Round(0));
  snapshotter_->Stop();
}

}  // namespace
}  // namespace signvote::journal
