// Goal:   when the file is written, what becomes of one that is there, and that no failure of a disk loses
//         the one before.
#include "worker/checkpoint/worker_checkpoints.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/exit_codes.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/worker/vote/voter_fixture.h"

namespace signvote {
namespace {

using testing::HasSubstr;

class WorkerCheckpointsTest : public VoterTest {
 protected:
  WorkerCheckpointsTest() {
    run_.run_id = RunId::FromRandom(1, 2);
    Make({});
  }
  std::unique_ptr<WorkerCheckpoints> Open(Every every = {.rounds = 4}) {
    auto opened = WorkerCheckpoints::Open(FileSystem::Posix(), &clock_, Options(every));
    EXPECT_TRUE(opened.ok()) << Describe(opened.status());
    return opened.ok() ? *std::move(opened) : nullptr;
  }
  WorkerCheckpoints::Options Options(Every every = {.rounds = 4}) const {
    return {.folder = dir_ / "state", .worker = "w1", .every = every};
  }
  StateOwner Owner() {
    return {.run = &run_, .replica = &replica_, .device = &device_, .voter = voter_.get()};
  }
  absl::Status Resume(WorkerCheckpoints* checkpoints, uint64_t round) {
    return checkpoints->Resume(Owner(), Round(round), round, {});
  }
  // A round from its ballot to what follows.
  void Round1(WorkerCheckpoints* checkpoints, uint64_t round) {
    VoteRound(Ticket(round), Step(verdict_.data(), round + 1));
    checkpoints->Note(Share(3), round + 1);
    ASSERT_TRUE(checkpoints->AfterRound(Owner(), {}, Round(round + 1)).ok());
  }
  std::string path() const { return dir_ / "state/w1.state"; }
  std::optional<uint64_t> RoundOfFile() {
    const auto state = ReadWorkerState(FileSystem::Posix(), path());
    if (!state.ok()) return std::nullopt;
    return state->round.value();
  }

  TempDir dir_;
  FakeClock clock_;
};

TEST_F(WorkerCheckpointsTest, IsWrittenWhenItIsDueAndAtTheEndAndGoesOn) {
  {
    const auto checkpoints = Open();
    ASSERT_TRUE(Resume(checkpoints.get(), 0).ok());
    EXPECT_EQ(checkpoints->stats().resumed, std::nullopt);
    for (uint64_t round = 0; round < 6; ++round) Round1(checkpoints.get(), round);
    ASSERT_TRUE(checkpoints->Final(Owner(), {}, Round(6)).ok());
    EXPECT_EQ(checkpoints->stats().written, Round(6));
    EXPECT_EQ(checkpoints->stats().written_total, 2u);
    EXPECT_EQ(checkpoints->stats().failed_total, 0u);
  }
  EXPECT_EQ(RoundOfFile(), 6u);
  const std::vector<float> m = State();
  Make({});
  const auto again = Open();
  ASSERT_TRUE(Resume(again.get(), 6).ok());
  const auto resumed = again->stats().resumed;
  ASSERT_TRUE(resumed.has_value());
  EXPECT_EQ(resumed->how, Resumed::How::kExactly);
  EXPECT_EQ(State(), m);
}

TEST_F(WorkerCheckpointsTest, AWorkerOfNoRoundSinceLeavesTheFileAsItIs) {
  {
    const auto checkpoints = Open();
    ASSERT_TRUE(Resume(checkpoints.get(), 0).ok());
    Round1(checkpoints.get(), 0);
    ASSERT_TRUE(checkpoints->Final(Owner(), {}, Round(1)).ok());
  }
  Make({});
  const auto again = Open();
  ASSERT_TRUE(Resume(again.get(), 5).ok());
  EXPECT_EQ(again->stats().resumed->age_rounds, 4u);
  ASSERT_TRUE(again->Final(Owner(), {}, Round(5)).ok());
  EXPECT_EQ(RoundOfFile(), 1u) << "it says how old its state is";
  // One that never came to its first round writes nothing either.
  const auto before = Open();
  ASSERT_TRUE(before->Final(Owner(), {}, Round(9)).ok());
  EXPECT_EQ(RoundOfFile(), 1u);
}

TEST_F(WorkerCheckpointsTest, OneOfAnotherRunIsPutAsideAndNeverLost) {
  const auto write = [this] {
    const auto checkpoints = Open();
    ASSERT_TRUE(Resume(checkpoints.get(), 0).ok());
    Round1(checkpoints.get(), 0);
    ASSERT_TRUE(checkpoints->Final(Owner(), {}, Round(1)).ok());
  };
  for (uint64_t run = 1; run <= 3; ++run) {
    run_.run_id = RunId::FromRandom(run, 2);
    Make({});
    write();
  }
  for (uint64_t run = 1; run <= 2; ++run) {
    const auto aside = ReadWorkerState(
        FileSystem::Posix(), dir_ / ("state/w1.earlier-" + std::to_string(run) + ".state"));
    ASSERT_TRUE(aside.ok()) << Describe(aside.status());
    EXPECT_EQ(aside->run_id, RunId::FromRandom(run, 2));
  }
  EXPECT_EQ(ReadWorkerState(FileSystem::Posix(), path())->run_id, RunId::FromRandom(3, 2));
}

TEST_F(WorkerCheckpointsTest, WhatCannotBeUsedIsOneErrorWithItsRemedyAndStays) {
  {
    const auto checkpoints = Open();
    ASSERT_TRUE(Resume(checkpoints.get(), 0).ok());
    Round1(checkpoints.get(), 0);
    ASSERT_TRUE(checkpoints->Final(Owner(), {}, Round(1)).ok());
  }
  run_.direction.beta = 0.5;
  Make({});
  const absl::Status other = Resume(Open().get(), 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(other)) << other;
  EXPECT_THAT(std::string(other.message()), HasSubstr("w1.state"));
  EXPECT_THAT(std::string(other.message()), HasSubstr("move it away"));
  EXPECT_EQ(RoundOfFile(), 1u);

  std::string bytes = *FileSystem::Posix()->ReadFile(path(), 1 << 20);
  bytes[300] = static_cast<char>(bytes[300] ^ 1);
  ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), path(), bytes, 0600).ok());
  const auto damaged = WorkerCheckpoints::Open(FileSystem::Posix(), &clock_, Options());
  EXPECT_TRUE(absl::IsDataLoss(damaged.status())) << damaged.status();
  EXPECT_EQ(ExitCodeFor(damaged.status()), ExitCode::kBadInput);
  EXPECT_THAT(std::string(damaged.status().message()), HasSubstr("move it away"));
}

TEST_F(WorkerCheckpointsTest, AFolderThatCannotBeUsedIsToldBeforeAnythingIsTrained) {
  ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), dir_ / "state", "a file", 0600).ok());
  const auto opened = WorkerCheckpoints::Open(FileSystem::Posix(), &clock_, Options());
  EXPECT_EQ(ExitCodeFor(opened.status()), ExitCode::kBadInput);
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("--checkpoint"));
}

// As a folder that goes away, or a disk that is full.
TEST_F(WorkerCheckpointsTest, WhatADiskDoesNotTakeIsKeptAndWrittenAgain) {
  const auto checkpoints = Open();
  ASSERT_TRUE(Resume(checkpoints.get(), 0).ok());
  for (uint64_t round = 0; round < 3; ++round) Round1(checkpoints.get(), round);
  const std::string moved = dir_ / "moved";
  ASSERT_EQ(std::rename((dir_ / "state").c_str(), moved.c_str()), 0);
  Round1(checkpoints.get(), 3);  // due, and fails: the round went on
  const absl::Status failed = checkpoints->Final(Owner(), {}, Round(4));
  EXPECT_EQ(ExitCodeFor(failed), ExitCode::kBadInput);
  EXPECT_THAT(std::string(failed.message()), HasSubstr("the state of round 4 is not written"));
  EXPECT_EQ(checkpoints->stats().failed_total, 2u);
  ASSERT_EQ(std::rename(moved.c_str(), (dir_ / "state").c_str()), 0);
  ASSERT_TRUE(checkpoints->WriteFinal().ok());
  EXPECT_EQ(RoundOfFile(), 4u);
  ASSERT_TRUE(checkpoints->WriteFinal().ok()) << "there is nothing left to write";
}

}  // namespace
}  // namespace signvote
