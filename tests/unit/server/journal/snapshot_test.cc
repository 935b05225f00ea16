// Goal:   a snapshot comes back bit for bit, its planes are safetensors files that others read, and
//         no flipped or missing byte of it passes.
#include "server/journal/snapshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/safetensors.h"
#include "common/status.h"
#include "server/journal/journal_format.h"
#include "server/journal/tool.h"
#include "tests/sim/sim_disk.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/server/journal/toy_journal.h"

namespace signvote::journal {
namespace {

using sim::SimDisk;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::ToyPayload;
using testing::ToyRun;

std::span<const std::byte> Span(const std::string& bytes) {
  return std::as_bytes(std::span(bytes.data(), bytes.size()));
}

TEST(SnapshotTest, ComesBackBitForBit) {
  for (const bool x0 : {false, true}) {
    SimDisk disk(1);
    ToyRun run(3, ToyPayload::kSignsAndDense, x0);
    run.Apply(run.Next());
    const v1::JournalHead head = run.Head();
    ASSERT_TRUE(WriteSnapshot(&disk, run.View(&head), nullptr).ok());
    const auto back = ReadSnapshot(&disk, Round(1));
    ASSERT_TRUE(back.ok()) << Describe(back.status());
    EXPECT_EQ(*back->x, run.x());
    EXPECT_EQ(back->x0 == nullptr, !x0);
    if (x0) {
      EXPECT_EQ(*back->x0, run.x0());
    }
    EXPECT_EQ(back->optimizer, run.optimizer());
    EXPECT_TRUE(back->layout == run.layout());
    EXPECT_EQ(back->head.SerializeAsString(), head.SerializeAsString());
  }
}

TEST(SnapshotTest, ItsParametersAreASafetensorsFile) {
  const TempDir dir;
  auto disk = Disk::OpenPosix(dir / "journal");
  ASSERT_TRUE(disk.ok()) << Describe(disk.status());
  ToyRun run(4, ToyPayload::kSigns, true);
  const v1::JournalHead head = run.Head();
  const absl::Status written = WriteSnapshot(disk->get(), run.View(&head), nullptr);
  ASSERT_TRUE(written.ok()) << Describe(written);
  const auto file =
      SafetensorsFile::Open(FileSystem::Posix(), (*disk)->PathOf(SnapshotXName(Round(0))));
  ASSERT_TRUE(file.ok()) << Describe(file.status());
  ASSERT_EQ((*file)->tensors().size(), 2u);
  EXPECT_EQ((*file)->tensors()[0].name, "w");
  EXPECT_EQ((*file)->tensors()[0].At(5), run.x()[5]);
  EXPECT_EQ((*file)->metadata().at("signvote.run_id"), run.run_id().ToText());
  EXPECT_TRUE(CheckSnapshot(disk->get(), Round(0)).ok());
}

TEST(SnapshotTest, NoFlippedBitPasses) {
  ToyRun run(5, ToyPayload::kSignsAndDense, true);
  run.Apply(run.Next());
  const v1::JournalHead head = run.Head();
  for (const std::string& name :
       {SnapshotStateName(Round(1)), SnapshotXName(Round(1)), SnapshotX0Name(Round(1))}) {
    SimDisk disk(1);
    ASSERT_TRUE(WriteSnapshot(&disk, run.View(&head), nullptr).ok());
    const size_t size = disk.Bytes(name).size();
    for (size_t at = 0; at < size; at += 7) {
      disk.Flip(name, at, static_cast<int>(at % 8));
      const absl::Status status = CheckSnapshot(&disk, Round(1));
      EXPECT_TRUE(absl::IsDataLoss(status) || absl::IsUnimplemented(status))
          << name << " " << at << Describe(status);
      EXPECT_THAT(std::string(status.message()), HasSubstr(name));
      disk.Flip(name, at, static_cast<int>(at % 8));
    }
    ASSERT_TRUE(CheckSnapshot(&disk, Round(1)).ok());
    ASSERT_TRUE(disk.Remove(name).ok());
    EXPECT_TRUE(absl::IsNotFound(CheckSnapshot(&disk, Round(1))));
  }
}

TEST(SnapshotTest, AStateFileThatIsCutAnywhereIsRefused) {
  ToyRun run(6, ToyPayload::kSigns, false);
  v1::JournalSnapshot message;
  *message.mutable_head() = run.Head();
  const std::vector<float> numbers = {1, 2, 3};
  const std::string bytes = EncodeStateFile(message, numbers);
  const auto whole = DecodeStateFile(Span(bytes));
  ASSERT_TRUE(whole.ok()) << Describe(whole.status());
  EXPECT_EQ(whole->optimizer, numbers);
  for (size_t cut = 0; cut < bytes.size(); ++cut)
    EXPECT_FALSE(DecodeStateFile(Span(bytes).first(cut)).ok()) << cut;
  EXPECT_FALSE(DecodeStateFile(Span(bytes + "x")).ok());
}

TEST(SnapshotTest, AWriterThatGivesUpLeavesNone) {
  SimDisk disk(1);
  ToyRun run(7, ToyPayload::kSigns, false);
  const v1::JournalHead head = run.Head();
  EXPECT_TRUE(absl::IsCancelled(WriteSnapshot(&disk, run.View(&head), [] { return true; })));
  EXPECT_TRUE(ListSnapshots(&disk)->empty());
}

// ---- the operator's commands --------------------------------------------------------------------

class ToolTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const v1::JournalHead head = run_.Head();
    ASSERT_TRUE(WriteSnapshot(&disk_, run_.View(&head), nullptr).ok());
    auto log = SegmentLog::Open(
        &disk_, 1 << 20, {.run_id = run_.run_id(), .epoch = Epoch(1), .round = Round(0)}, {});
    ASSERT_TRUE(log.ok());
    ASSERT_TRUE((*log)->Begin(head.SerializeAsString(), run_.plan().TotalBytes()).ok());
    for (int i = 0; i < 8; ++i) {
      const LogCommit commit = run_.Next();
      ASSERT_TRUE((*log)->Write(commit).ok());
      ASSERT_TRUE((*log)->Sync().ok());
      run_.Apply(commit);
      ends_.push_back((*log)->written_bytes() + sizeof(SegmentHeader));
    }
  }
  void GoOnAsTheSecondServer() {
    const auto recovered = Recover(&disk_, {}, Clock::System());
    ASSERT_TRUE(recovered.ok());
    auto log = SegmentLog::Open(&disk_, 1 << 20,
                                {.run_id = run_.run_id(), .epoch = Epoch(2), .round = run_.round()},
                                *recovered);
    ASSERT_TRUE(log.ok());
    const v1::JournalHead head = run_.Head();
    ASSERT_TRUE((*log)->Begin(head.SerializeAsString(), run_.plan().TotalBytes()).ok());
    for (int i = 0; i < 4; ++i) {
      const LogCommit commit = run_.Next();
      ASSERT_TRUE((*log)->Write(commit).ok());
      ASSERT_TRUE((*log)->Sync().ok());
      run_.Apply(commit);
    }
  }
  Print print() {
    return [this](const std::string& line) { printed_ += line; };
  }

  SimDisk disk_{9};
  ToyRun run_{9, ToyPayload::kSigns, false};
  std::vector<uint64_t> ends_;  // of each round in the segment
  std::string printed_;
};

TEST_F(ToolTest, VerifySaysWhatIsThere) {
  EXPECT_TRUE(Verify(&disk_, Clock::System(), print()).ok());
  EXPECT_THAT(printed_, HasSubstr("snapshot of round 0: whole"));
  EXPECT_THAT(printed_, HasSubstr("8 commits"));
  EXPECT_THAT(printed_, HasSubstr("epoch 1: 8 rounds, 8 of them played"));
  disk_.Flip(SegmentName(1), ends_[2] + 60, 1);
  EXPECT_TRUE(absl::IsDataLoss(Verify(&disk_, Clock::System(), print())));
}

TEST_F(ToolTest, DumpHasALineForEachRecord) {
  EXPECT_TRUE(Dump(&disk_, print()).ok());
  EXPECT_THAT(printed_, HasSubstr("head      round 0: 2 tensors, chunks of 512 coordinates"));
  EXPECT_THAT(printed_, HasSubstr("commit    round 7: "));
}

TEST_F(ToolTest, TruncateCutsAtTheDamageAndKeepsWhatItCutOff) {
  EXPECT_TRUE(Truncate(&disk_, Clock::System(), print()).ok());
  EXPECT_THAT(printed_, HasSubstr("nothing that a start reads is damaged"));
  disk_.Flip(SegmentName(1), ends_[4] + 60, 1);
  EXPECT_FALSE(Recover(&disk_, {}, Clock::System()).ok());
  EXPECT_TRUE(Truncate(&disk_, Clock::System(), print()).ok());
  EXPECT_THAT(printed_, HasSubstr("the run goes on from round 5"));
  const auto recovered = Recover(&disk_, {}, Clock::System());
  ASSERT_TRUE(recovered.ok()) << Describe(recovered.status());
  EXPECT_EQ(recovered->round(), Round(5));
  ASSERT_TRUE(run_.GoBackTo(Round(5)));
  EXPECT_EQ(*recovered->x, run_.x());
  EXPECT_FALSE(disk_.Bytes(SegmentName(1) + ".cut").empty());
}

TEST_F(ToolTest, NumbersOfServersWhoseSegmentsWerePutAsideAreNotUsedAgain) {
  GoOnAsTheSecondServer();
  disk_.Flip(SegmentName(1), ends_[4] + 60, 1);
  EXPECT_TRUE(Truncate(&disk_, Clock::System(), print()).ok());
  EXPECT_FALSE(disk_.Bytes(SegmentName(2) + ".cut").empty());
  const auto recovered = Recover(&disk_, {}, Clock::System());
  ASSERT_TRUE(recovered.ok()) << Describe(recovered.status());
  EXPECT_EQ(recovered->round(), Round(5));
  EXPECT_EQ(recovered->last_epoch, Epoch(2)) << "workers may still know what it told them";
}

TEST_F(ToolTest, TruncateLeavesDamageThatNoStartReads) {
  GoOnAsTheSecondServer();
  const v1::JournalHead head = run_.Head();
  ASSERT_TRUE(WriteSnapshot(&disk_, run_.View(&head), nullptr).ok());
  disk_.Flip(SegmentName(1), ends_[4] + 60, 1);
  EXPECT_TRUE(Truncate(&disk_, Clock::System(), print()).ok());
  EXPECT_THAT(printed_, HasSubstr("nothing that a start reads is damaged"));
  const auto recovered = Recover(&disk_, {}, Clock::System());
  ASSERT_TRUE(recovered.ok()) << Describe(recovered.status());
  EXPECT_EQ(recovered->round(), run_.round());
}

TEST_F(ToolTest, TruncatePutsASegmentAsideWhoseBeginningIsDamaged) {
  GoOnAsTheSecondServer();
  disk_.Flip(SegmentName(2), 0, 1);
  const absl::Status refused = Recover(&disk_, {}, Clock::System()).status();
  EXPECT_TRUE(absl::IsDataLoss(refused)) << Describe(refused);
  EXPECT_THAT(Describe(refused), HasSubstr(SegmentName(2) + " is no segment of a journal"));
  EXPECT_THAT(Describe(refused), HasSubstr("signvote journal truncate"));
  EXPECT_TRUE(Truncate(&disk_, Clock::System(), print()).ok());
  EXPECT_THAT(printed_, HasSubstr("the run goes on from round 8"));
  EXPECT_THAT(printed_, Not(HasSubstr("nothing was cut")));
  EXPECT_FALSE(disk_.Bytes(SegmentName(2) + ".cut").empty());
  const auto recovered = Recover(&disk_, {}, Clock::System());
  ASSERT_TRUE(recovered.ok()) << Describe(recovered.status());
  EXPECT_EQ(recovered->round(), Round(8));
  EXPECT_EQ(recovered->last_epoch, Epoch(2)) << "nobody knows any more whose it was";
}

TEST_F(ToolTest, TruncateThatLeavesNoSegmentSaysWhatIsLeftToDo) {
  disk_.Flip(SegmentName(1), 0, 1);
  const absl::Status left = Truncate(&disk_, Clock::System(), print());
  EXPECT_TRUE(absl::IsDataLoss(left)) << Describe(left);
  EXPECT_THAT(Describe(left), HasSubstr("--init"));
  EXPECT_THAT(printed_, Not(HasSubstr("nothing was cut")));
  EXPECT_FALSE(disk_.Bytes(SegmentName(1) + ".cut").empty());
}

TEST_F(ToolTest, TruncateKeepsWhatIsBehindADamagedBeginningWhereASnapshotStandsInForTheRest) {
  GoOnAsTheSecondServer();
  const v1::JournalHead head = run_.Head();
  ASSERT_TRUE(WriteSnapshot(&disk_, run_.View(&head), nullptr).ok());
  disk_.Flip(SegmentName(1), 0, 1);
  EXPECT_TRUE(Truncate(&disk_, Clock::System(), print()).ok());
  EXPECT_FALSE(disk_.Bytes(SegmentName(1) + ".cut").empty());
  const auto recovered = Recover(&disk_, {}, Clock::System());
  ASSERT_TRUE(recovered.ok()) << Describe(recovered.status());
  EXPECT_EQ(recovered->round(), run_.round());
}

}  // namespace
}  // namespace signvote::journal
