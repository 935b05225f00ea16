#include "worker/train/replica_saver.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/checkpoint.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/export_metadata.h"
#include "common/saved_run.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

class ReplicaSaverTest : public testing::Test {
 protected:
  ReplicaSaverTest() {
    run_.layout = *Layout::Make({{.name = "w", .shape = {3}}});
    run_.run_id = RunId::FromRandom(1, 2);
  }
  // The round and the digest that the file says it has, "" when it is not there, and whether that is
  // its digest.
  std::string Says(const std::string& name) {
    const auto file = Checkpoint::Open(FileSystem::Posix(), dir_ / name);
    if (!file.ok()) return "";
    std::vector<float> x(3);
    EXPECT_TRUE((*file)->CopyInto(run_.layout, x).ok());
    HostReplicaMemory memory{std::span<float>(x)};
    EXPECT_EQ((*file)->metadata().at("signvote.digest"),
              absl::StrFormat("%016x", *memory.Digest()));
    EXPECT_EQ((*file)->metadata().at("signvote.run_id"), run_.run_id.ToText());
    return (*file)->metadata().at("signvote.round");
  }
  ReplicaSaver Saver(Every every) {
    return ReplicaSaver(FileSystem::Posix(), &clock_,
                        {.path = dir_ / "m", .every = every, .config_json = "{\"a\":1}"});
  }

  TempDir dir_;
  FakeClock clock_;
  RunInfo run_;
  std::vector<float> x_ = {1, 2, 3};
  HostReplicaMemory replica_{std::span<float>(x_)};
};

TEST_F(ReplicaSaverTest, CopiesAreWrittenWhenTheyAreDueAndTheReplicaAtTheEnd) {
  ReplicaSaver saver = Saver({.rounds = 2});
  saver.Begin(Round(3));
  for (uint64_t round = 3; round <= 5; ++round) {
    x_[0] = static_cast<float>(round);
    ASSERT_TRUE(saver.AfterRound(run_, &replica_, Round(round), ReplicaSaver::Asked::kNo).ok());
  }
  x_[0] = 7;
  ASSERT_TRUE(saver.Final(run_, &replica_, Round(7), *replica_.Digest()).ok());
  EXPECT_EQ(Says("m"), "7");
  EXPECT_EQ(Says("m.round-00000004"), "4");
  EXPECT_EQ(Says("m.round-00000003"), "");
  EXPECT_EQ(Says("m.round-00000005"), "");
  EXPECT_EQ(*FileSystem::Posix()->ReadFile(dir_ / "config.json", 100), "{\"a\":1}");
}

TEST_F(ReplicaSaverTest, AReplicaWhoseStateNeverComesIsThereAsItWasBefore) {
  ReplicaSaver saver = Saver({});
  saver.Begin(Round(0));
  EXPECT_EQ(saver.before_transfer(), std::nullopt);
  saver.BeforeTransfer(run_, &replica_, Round(5));
  x_[0] = 99;  // half of another state
  EXPECT_EQ(Says("m"), "5");
  EXPECT_EQ(saver.before_transfer(), Round(5));
  // One that comes takes its place.
  ASSERT_TRUE(saver.Final(run_, &replica_, Round(9), *replica_.Digest()).ok());
  EXPECT_EQ(Says("m"), "9");
}

TEST_F(ReplicaSaverTest, WhatADiskDoesBeforeATransferEndsNothing) {
  ReplicaSaver saver(FileSystem::Posix(), &clock_, {.path = dir_ / "gone/m"});
  saver.BeforeTransfer(run_, &replica_, Round(5));
  EXPECT_EQ(saver.before_transfer(), std::nullopt);
  ReplicaSaver without(FileSystem::Posix(), &clock_, {});
  without.BeforeTransfer(run_, &replica_, Round(5));
  EXPECT_EQ(without.before_transfer(), std::nullopt);
}

TEST_F(ReplicaSaverTest, ACopyThatIsAskedForIsWrittenAtOnce) {
  ReplicaSaver saver = Saver({});
  saver.Begin(Round(0));
  ASSERT_TRUE(saver.AfterRound(run_, &replica_, Round(1), ReplicaSaver::Asked::kYes).ok());
  ASSERT_TRUE(saver.Final(run_, &replica_, Round(2), *replica_.Digest()).ok());
  EXPECT_EQ(Says("m.round-00000001"), "1");
}

TEST_F(ReplicaSaverTest, AReplicaSaysWhereTheStepsizeStoodOnceItHasChanged) {
  run_.rule = "alias";
  ReplicaSaver saver = Saver({});
  saver.Begin(Round(0));
  const auto stepsize = [&](const char* name) {
    const auto file = Checkpoint::Open(FileSystem::Posix(), dir_ / name);
    EXPECT_TRUE(file.ok()) << file.status();
    return *AliasStepsizeOf((*file)->metadata());
  };
  saver.OnCommit(CommitKind::kStep, 1e-5f);
  ASSERT_TRUE(saver.AfterRound(run_, &replica_, Round(1), ReplicaSaver::Asked::kYes).ok());
  saver.OnCommit(CommitKind::kStep, 0.25f);
  saver.OnCommit(CommitKind::kStep, 0.125f);
  ASSERT_TRUE(saver.Final(run_, &replica_, Round(3), *replica_.Digest()).ok());
  EXPECT_EQ(stepsize("m.round-00000001"), std::nullopt);
  EXPECT_EQ(stepsize("m"), 0.125f);
  run_.rule = "fixed";
  ASSERT_TRUE(saver.Final(run_, &replica_, Round(3), *replica_.Digest()).ok());
  EXPECT_EQ(stepsize("m"), std::nullopt);
}

TEST_F(ReplicaSaverTest, CopiesAndTheReplicaAreWrittenInTheFormatThatIsAskedFor) {
  run_.layout = *Layout::Make({{.name = "v", .shape = {1}}, {.name = "w", .shape = {2}}});
  ReplicaSaver saver(FileSystem::Posix(), &clock_,
                     {.path = dir_ / "m.safetensors",
                      .format = {.dtype = TensorDtype::kBf16, .shard_bytes = 4},
                      .config_json = "{}"});
  saver.Begin(Round(0));
  ASSERT_TRUE(saver.AfterRound(run_, &replica_, Round(1), ReplicaSaver::Asked::kYes).ok());
  ASSERT_TRUE(saver.Final(run_, &replica_, Round(2), *replica_.Digest()).ok());
  const std::pair<std::string, std::string> written[] = {{"m", "2"}, {"m.round-00000001", "1"}};
  for (const auto& [name, round] : written) {
    EXPECT_EQ(Says(name + ".safetensors"), round) << "1, 2, 3 fit bfloat16";
    const auto shard =
        SafetensorsFile::Open(FileSystem::Posix(), dir_ / (name + "-00002-of-00002.safetensors"));
    ASSERT_TRUE(shard.ok()) << shard.status();
    EXPECT_EQ((*shard)->tensors()[0].dtype, TensorDtype::kBf16);
  }
}

TEST_F(ReplicaSaverTest, FilesOfTheReplicaCarryTheRunAndOneBesideThemWhatItStartedWith) {
  run_.run_head = "head";
  std::string state = "behind round 0";
  const auto saver_of = [&](TensorDtype dtype) {
    return std::make_unique<ReplicaSaver>(
        FileSystem::Posix(), &clock_,
        ReplicaSaver::Options{.path = dir_ / "m.safetensors",
                              .format = {.dtype = dtype},
                              .run_state = [&state] { return state; }});
  };
  const auto carried = [&](const std::string& name) {
    const auto file = Checkpoint::Open(FileSystem::Posix(), dir_ / name);
    EXPECT_TRUE(file.ok()) << file.status();
    return *SavedRunOf((*file)->metadata());
  };
  ASSERT_TRUE(replica_.KeepX0().ok());
  const std::vector<float> x0 = {7, 8, 9};
  ASSERT_TRUE(replica_.WriteX0(0, x0).ok());
  auto saver = saver_of(TensorDtype::kF32);
  saver->Begin(Round(0));
  ASSERT_TRUE(saver->AfterRound(run_, &replica_, Round(1), ReplicaSaver::Asked::kYes).ok());
  state = "behind round 1";
  ASSERT_TRUE(saver->Final(run_, &replica_, Round(2), *replica_.Digest()).ok());
  const SavedX0 beside{.file = "m.x0.safetensors",
                       .digest = ReplicaDigest(x0.data(), 0, x0.size())};
  for (const auto& [name, round, after] :
       {std::tuple("m.round-00000001.safetensors", 1, "behind round 0"),
        std::tuple("m.safetensors", 2, "behind round 1")}) {
    const std::optional<SavedRun> run = carried(name);
    ASSERT_TRUE(run.has_value()) << name;
    EXPECT_EQ(run->head, "head");
    EXPECT_EQ(run->after, after);
    EXPECT_EQ(run->round, Round(static_cast<uint64_t>(round)));
    EXPECT_EQ(run->digest, *replica_.Digest());
    EXPECT_EQ(run->x0, beside);
  }
  std::vector<float> read(3);
  ASSERT_TRUE((*Checkpoint::Open(FileSystem::Posix(), dir_ / "m.x0.safetensors"))
                  ->CopyInto(run_.layout, read)
                  .ok());
  EXPECT_EQ(read, x0);
  replica_.DropX0();
  ASSERT_TRUE(saver->Final(run_, &replica_, Round(3), *replica_.Digest()).ok());
  EXPECT_EQ(carried("m.safetensors")->x0, std::nullopt);
  // Where the server said nothing of it, and in rounded numbers, a file is of no use to go on from.
  ASSERT_TRUE(
      saver_of(TensorDtype::kBf16)->Final(run_, &replica_, Round(3), *replica_.Digest()).ok());
  EXPECT_EQ(carried("m.safetensors"), std::nullopt);
  state = "";
  ASSERT_TRUE(saver->Final(run_, &replica_, Round(3), *replica_.Digest()).ok());
  EXPECT_EQ(carried("m.safetensors"), std::nullopt);
}

TEST_F(ReplicaSaverTest, WithoutAPathNothingIsWrittenWhateverIsAsked) {
  ReplicaSaver saver(FileSystem::Posix(), &clock_, {});
  saver.Begin(Round(0));
  EXPECT_TRUE(saver.AfterRound(run_, &replica_, Round(1), ReplicaSaver::Asked::kYes).ok());
  EXPECT_TRUE(saver.Final(run_, &replica_, Round(1), 0).ok());
  EXPECT_TRUE(FileSystem::Posix()->ListFiles(dir_.path())->empty());
}

TEST_F(ReplicaSaverTest, AFolderThatIsGoneIsABadFileOfTheEnd) {
  ReplicaSaver saver(FileSystem::Posix(), &clock_, {.path = dir_ / "gone/m"});
  saver.Begin(Round(0));
  // A copy that fails ends nothing.
  EXPECT_TRUE(saver.AfterRound(run_, &replica_, Round(1), ReplicaSaver::Asked::kYes).ok());
  EXPECT_EQ(ExitCodeFor(saver.Final(run_, &replica_, Round(1), 0)), ExitCode::kBadInput);
}

// Of a model that no machine holds.
class VastReplica final : public ReplicaMemory {
 public:
  uint64_t coordinates() const override { return uint64_t{1} << 62; }
  absl::Status Write(uint64_t, std::span<const float>) override { return NotHere(); }
  absl::Status Read(uint64_t, std::span<float>) override { return NotHere(); }
  absl::Status Apply(const Layout&, const StepArguments&, uint64_t, uint64_t,
                     const uint8_t*) override {
    return NotHere();
  }
  absl::Status ApplyCounts(const Layout&, const StepArguments&, uint64_t, uint64_t,
                           const CountsView&) override {
    return NotHere();
  }
  absl::Status ApplyDense(const Layout&, const StepArguments&, uint64_t, uint64_t,
                          const DenseView&) override {
    return NotHere();
  }
  absl::StatusOr<uint64_t> Digest() override { return NotHere(); }

 private:
  static absl::Status NotHere() { return absl::UnimplementedError("nothing is here"); }
};

TEST_F(ReplicaSaverTest, WithoutMemoryForACopyTheTrainingGoesOn) {
  ReplicaSaver saver = Saver({});
  saver.Begin(Round(0));
  VastReplica vast;
  EXPECT_TRUE(saver.AfterRound(run_, &vast, Round(1), ReplicaSaver::Asked::kYes).ok());
  ASSERT_TRUE(saver.AfterRound(run_, &replica_, Round(2), ReplicaSaver::Asked::kYes).ok());
  ASSERT_TRUE(saver.Final(run_, &replica_, Round(3), *replica_.Digest()).ok());
  EXPECT_EQ(Says("m.round-00000001"), "");
  EXPECT_EQ(Says("m.round-00000002"), "2");
}

TEST_F(ReplicaSaverTest, WhatWasNotWrittenAtTheEndCanBeWrittenOnceMore) {
  ReplicaSaver saver(FileSystem::Posix(), &clock_, {.path = dir_ / "gone/m"});
  saver.Begin(Round(0));
  EXPECT_FALSE(saver.Final(run_, &replica_, Round(1), *replica_.Digest()).ok());
  std::filesystem::create_directory(dir_ / "gone");
  EXPECT_TRUE(saver.Final(run_, &replica_, Round(1), *replica_.Digest()).ok());
  EXPECT_EQ(Says("gone/m"), "1");
}

}  // namespace
}  // namespace signvote
