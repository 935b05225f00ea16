// Goal:   what was synced is there after any crash, bit for bit; what was not is there whole or not at
//         all; and what a disk did to durable bytes is never taken for the truth.
// Method: a made-up run writes segments and snapshots to a simulated disk, is killed or loses its power
//         at random, and is recovered; a model of it says what must be there. Each seed is one trace.
#include "server/journal/recovery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/status.h"
#include "server/journal/journal_format.h"
#include "server/journal/segment_log.h"
#include "server/journal/snapshot.h"
#include "tests/sim/sim_disk.h"
#include "tests/unit/server/journal/toy_journal.h"

namespace signvote::journal {
namespace {

using sim::DiskFaults;
using sim::SimDisk;
using testing::ChunkOf;
using ::testing::HasSubstr;
using testing::ToyPayload;
using testing::ToyRun;

constexpr uint64_t kSegment = 32 << 10;  // several rounds

ToyPayload PayloadOf(uint64_t seed) { return static_cast<ToyPayload>(seed % 3); }

// One run on one disk, over any number of servers.
class Trace {
 public:
  Trace(uint64_t seed, uint64_t segment_bytes = kSegment)
      : disk(seed),
        run(seed, PayloadOf(seed), seed % 2 == 0),
        rng_(seed, 0x77),
        segment_bytes_(segment_bytes) {}

  // A server starts. Checks what it recovers against the model; false: it refused to start.
  bool Start() {
    absl::StatusOr<Recovered> recovered =
        Recover(&disk, {.recent_bytes = 1 << 20, .recent_max = 4}, Clock::System());
    start = recovered.status();
    if (!recovered.ok()) return false;
    LogStart log_start{
        .run_id = run.run_id(), .epoch = recovered->last_epoch.next(), .round = Round(0)};
    if (recovered->begun) {
      recovered_to = recovered->round();
      EXPECT_LE(recovered_to, written) << "more than was ever written";
      if (!run.GoBackTo(recovered_to)) {
        ADD_FAILURE() << "round " << recovered_to.value() << " never was";
        return false;
      }
      EXPECT_EQ(*recovered->x, run.x());
      EXPECT_EQ(recovered->x0 == nullptr ? std::vector<float>() : *recovered->x0, run.x0());
      EXPECT_EQ(recovered->optimizer, run.optimizer());
      EXPECT_EQ(recovered->head.run().engine().SerializeAsString(),
                run.run().engine().SerializeAsString());
      // Names that came behind that commit may be there, and are a prefix of those that came.
      EXPECT_GE(recovered->head.run().names_size(), run.run().names_size());
      *run.run().mutable_names() = recovered->head.run().names();
      run.run().set_next_worker_id(recovered->head.run().next_worker_id());
      *run.run().mutable_begun() = recovered->head.run().begun();
      for (const auto& record : recovered->recent) EXPECT_LT(record->round, recovered_to);
      if (!recovered->recent.empty()) {
        EXPECT_EQ(recovered->recent.back()->round.next(), recovered_to);
      }
      log_start.round = recovered_to;
      begun = true;
    } else {
      EXPECT_FALSE(released.has_value()) << "a run that had begun is gone";
      recovered_to = Round(0);
      run.GoBackTo(Round(0));
      begun = false;
    }
    written = run.round();
    absl::StatusOr<std::unique_ptr<SegmentLog>> opened =
        SegmentLog::Open(&disk, segment_bytes_, log_start, *recovered);
    if (!opened.ok()) return true;  // the disk failed; the next server tries
    log = *std::move(opened);
    kept.assign(recovered->snapshots.rbegin(), recovered->snapshots.rend());
    if (begun) (void)Begin();
    return true;
  }

  absl::Status Begin() {
    const v1::JournalHead head = run.Head();
    if (!begun) SIGNVOTE_RETURN_IF_ERROR(Snapshot());
    begun = true;
    return log->Begin(head.SerializeAsString(), run.plan().TotalBytes());
  }

  absl::Status Snapshot() {
    const v1::JournalHead head = run.Head();
    SIGNVOTE_RETURN_IF_ERROR(WriteSnapshot(&disk, run.View(&head), nullptr));
    if (kept.empty() || kept.back() != run.round()) kept.push_back(run.round());
    while (kept.size() > 2) {
      SIGNVOTE_RETURN_IF_ERROR(RemoveSnapshot(&disk, kept.front()));
      kept.erase(kept.begin());
    }
    if (log == nullptr) return absl::OkStatus();
    return log->DropBefore(kept.front());
  }

  // One round, and perhaps what happens beside it.
  absl::Status Round1() {
    if (rng_.Below(6) == 0) {
      LogNote note{.type = RecordType::kName, .payload = run.AddName().SerializeAsString()};
      SIGNVOTE_RETURN_IF_ERROR(log->Write(note));
    }
    const LogCommit commit = run.Next();
    const CommitRecord& record = *commit.record;
    for (uint32_t k = 0; k < record.chunks.size(); ++k) {
      if (rng_.Below(2) == 0) SIGNVOTE_RETURN_IF_ERROR(log->Write(ChunkOf(record, k)));
    }
    if (!record.chunks.empty() && rng_.Below(5) == 0) {
      // Of an attempt that came to nothing.
      Durability::Chunk other = ChunkOf(record, 0);
      other.attempt = Attempt(record.attempt.value() + 1);
      SIGNVOTE_RETURN_IF_ERROR(log->Write(other));
    }
    // It may be there whatever becomes of the calls.
    run.Apply(commit);
    written = std::max(written, run.round());
    SIGNVOTE_RETURN_IF_ERROR(log->Write(commit));
    SIGNVOTE_RETURN_IF_ERROR(log->Sync());
    released = run.round();
    return absl::OkStatus();
  }

  SimDisk disk;
  ToyRun run;
  std::unique_ptr<SegmentLog> log;
  std::vector<Round> kept;        // snapshots, the oldest first
  std::optional<Round> released;  // commits before it were
  Round written, recovered_to;
  bool begun = false;
  absl::Status start;

 private:
  Rng rng_;
  const uint64_t segment_bytes_;
};

uint64_t Seeds(uint64_t usual) {
  const char* given = std::getenv("SIGNVOTE_JOURNAL_SEEDS");
  return given == nullptr ? usual : std::stoull(given);
}

// A life of the server: some rounds and snapshots, until it is killed or has done enough.
void Live(Trace& trace, Rng& rng) {
  if (trace.log == nullptr) return;
  if (!trace.begun && !trace.Begin().ok()) return;
  for (uint64_t rounds = 1 + rng.Below(14); rounds > 0; --rounds) {
    if (!trace.Round1().ok()) return;
    if (rng.Below(5) == 0 && !trace.Snapshot().ok()) return;
  }
}

TEST(RecoveryTest, NothingThatWasSyncedIsLostWhateverEndsTheServer) {
  sim::DiskStrikes all;
  for (uint64_t seed = 1; seed <= Seeds(400); ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Trace trace(seed);
    Rng rng(seed, 0x1);
    for (int life = 0; life < 6; ++life) {
      ASSERT_TRUE(trace.Start()) << Describe(trace.start);
      if (trace.released.has_value()) {
        ASSERT_GE(trace.recovered_to, *trace.released);
      }
      if (::testing::Test::HasFailure()) return;
      if (rng.Below(3) != 0) trace.disk.KillAfter(rng.Below(60'000));
      if (rng.Below(4) == 0) {
        trace.disk.Set({.write_fails = rng.Below(2) == 0 ? 0.02 : 0,
                        .sync_fails = rng.Below(2) == 0 ? 0.05 : 0,
                        .capacity = rng.Below(2) == 0 ? 90'000 + rng.Below(100'000) : UINT64_MAX});
      }
      Live(trace, rng);
      trace.log.reset();
      trace.disk.Begin(rng.Below(2) == 0 ? SimDisk::Restart::kPower : SimDisk::Restart::kProcess);
    }
    const sim::DiskStrikes s = trace.disk.strikes();
    all.killed_in_write += s.killed_in_write;
    all.writes_lost += s.writes_lost;
    all.writes_torn += s.writes_torn;
    all.renames_lost += s.renames_lost;
    all.syncs_failed += s.syncs_failed;
    all.writes_failed += s.writes_failed;
    all.full += s.full;
  }
  EXPECT_GT(all.killed_in_write, 0u);
  EXPECT_GT(all.writes_lost, 0u);
  EXPECT_GT(all.writes_torn, 0u);
  EXPECT_GT(all.renames_lost, 0u);
  EXPECT_GT(all.syncs_failed, 0u);
  EXPECT_GT(all.writes_failed, 0u);
  EXPECT_GT(all.full, 0u);
}

TEST(RecoveryTest, ADiskThatForgetsWhatItSyncedCostsCommitsOrIsRefusedAndNothingElse) {
  uint64_t lost = 0, refused = 0, strikes = 0;
  for (uint64_t seed = 1; seed <= Seeds(200); ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Trace trace(seed);
    Rng rng(seed, 0x2);
    ASSERT_TRUE(trace.Start());
    trace.disk.Set({.sync_lost = 0.3});
    Live(trace, rng);
    trace.log.reset();
    trace.disk.Begin(SimDisk::Restart::kPower);
    strikes += trace.disk.strikes().syncs_lost;
    const std::optional<Round> released = std::exchange(trace.released, std::nullopt);
    // The model compares every bit of what is recovered.
    if (!trace.Start()) {
      ++refused;
    } else if (released.has_value() && trace.recovered_to < *released) {
      ++lost;
    }
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(strikes, 0u);
  EXPECT_GT(lost + refused, 0u);
}

TEST(RecoveryTest, NoFlippedBitIsTakenForTheTruth) {
  uint64_t refused = 0, cut = 0, harmless = 0;
  for (uint64_t seed = 1; seed <= Seeds(400); ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Trace trace(seed);
    Rng rng(seed, 0x3);
    ASSERT_TRUE(trace.Start());
    Live(trace, rng);
    trace.log.reset();
    const auto entries = trace.disk.List();
    std::vector<DiskEntry> files;
    for (const DiskEntry& entry : *entries)
      if (entry.bytes > 0) files.push_back(entry);
    const DiskEntry& file = files[rng.Below(files.size())];
    trace.disk.Flip(file.name, rng.Below(std::min<uint64_t>(file.bytes, 8 << 10)),
                    static_cast<int>(rng.Below(8)));
    trace.disk.Begin(SimDisk::Restart::kProcess);
    const std::optional<Round> released = std::exchange(trace.released, std::nullopt);
    if (!trace.Start()) {
      EXPECT_THAT(std::string(trace.start.message()), ::testing::Not(HasSubstr("seed")));
      ++refused;
    } else if (released.has_value() && trace.recovered_to < *released) {
      ++cut;
    } else {
      ++harmless;
    }
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(refused, 0u);
  EXPECT_GT(harmless, 0u);
  // Only a flip in the very last write can pass for one that was under way.
  EXPECT_LT(cut, refused);
}

TEST(RecoveryTest, TheRunIsRebuiltAtEveryRoundThatIsCovered) {
  Trace trace(12);
  ASSERT_TRUE(trace.Start());
  ASSERT_TRUE(trace.Begin().ok());
  std::vector<std::vector<float>> x = {trace.run.x()};
  for (int round = 0; round < 30; ++round) {
    ASSERT_TRUE(trace.Round1().ok());
    x.push_back(trace.run.x());
    if (round == 14) {
      ASSERT_TRUE(trace.Snapshot().ok());
    }
  }
  for (size_t round = 0; round < x.size(); ++round) {
    const auto then = Recover(&trace.disk, {.until = Round(round)}, Clock::System());
    ASSERT_TRUE(then.ok()) << Describe(then.status());
    EXPECT_EQ(*then->x, x[round]) << round;
    EXPECT_EQ(then->report.snapshot, Round(round < 15 ? 0 : 15));
  }
  const auto later = Recover(&trace.disk, {.until = Round(31)}, Clock::System());
  EXPECT_TRUE(absl::IsNotFound(later.status()));
  EXPECT_THAT(std::string(later.status().message()), HasSubstr("ends behind round 30"));
}

TEST(RecoveryTest, ServersThatBeginInVainLeaveOneSegment) {
  Trace trace(12);
  ASSERT_TRUE(trace.Start());
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(trace.Start());
  ASSERT_TRUE(trace.Begin().ok());
  ASSERT_TRUE(trace.Round1().ok());
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(trace.Start());
  auto segments = ListSegments(&trace.disk);
  ASSERT_TRUE(segments.ok()) << Describe(segments.status());
  ASSERT_EQ(segments->size(), 2u);
  EXPECT_EQ(segments->back().info.epoch, Epoch(9)) << "each of them counts all the same";
  ASSERT_TRUE(trace.Round1().ok());
  ASSERT_TRUE(trace.Start());
  EXPECT_EQ(trace.recovered_to, Round(2));
}

TEST(RecoveryTest, ASegmentThatIsMissingIsNamed) {
  Trace trace(6);
  ASSERT_TRUE(trace.Start());
  ASSERT_TRUE(trace.Begin().ok());
  for (int round = 0; round < 150; ++round) ASSERT_TRUE(trace.Round1().ok());
  ASSERT_TRUE(trace.disk.Remove(SegmentName(2)).ok());
  ASSERT_FALSE(trace.Start());
  EXPECT_TRUE(absl::IsDataLoss(trace.start));
  EXPECT_THAT(std::string(trace.start.message()), HasSubstr(SegmentName(2) + " is missing"));
}

TEST(RecoveryTest, ADamagedSnapshotIsPassedOverForAnOlderOne) {
  Trace trace(8);
  ASSERT_TRUE(trace.Start());
  ASSERT_TRUE(trace.Begin().ok());
  for (int round = 0; round < 10; ++round) ASSERT_TRUE(trace.Round1().ok());
  ASSERT_TRUE(trace.Snapshot().ok());
  ASSERT_TRUE(trace.Round1().ok());
  trace.disk.Flip(SnapshotXName(Round(10)), 700, 3);
  const auto recovered = Recover(&trace.disk, {}, Clock::System());
  ASSERT_TRUE(recovered.ok()) << Describe(recovered.status());
  EXPECT_EQ(recovered->report.snapshot, Round(0));
  EXPECT_EQ(recovered->round(), Round(11));
  EXPECT_EQ(*recovered->x, trace.run.x());
  ASSERT_EQ(recovered->report.unusable.size(), 1u);
  EXPECT_THAT(recovered->report.unusable[0], HasSubstr(SnapshotXName(Round(10))));
}

TEST(RecoveryTest, DamageBeforeIntactCommitsIsAnErrorWithOffsetAndRemedy) {
  Trace trace(9);
  ASSERT_TRUE(trace.Start());
  ASSERT_TRUE(trace.Begin().ok());
  for (int round = 0; round < 5; ++round) ASSERT_TRUE(trace.Round1().ok());
  trace.disk.Flip(SegmentName(1), 1500, 0);
  ASSERT_FALSE(trace.Start()) << trace.recovered_to.value();
  EXPECT_TRUE(absl::IsDataLoss(trace.start));
  EXPECT_THAT(std::string(trace.start.message()),
              HasSubstr(SegmentName(1) + " is damaged at byte"));
  EXPECT_THAT(std::string(trace.start.message()), HasSubstr("signvote journal truncate"));
}

}  // namespace
}  // namespace signvote::journal
