// Goal: a model that another run, or nobody's run, has left under a name is never lost for a new one.
#include "common/standing_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checkpoint.h"
#include "common/exit_codes.h"
#include "common/model_writer.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Layout TwoTensors() {
  return *Layout::Make({{.name = "a", .shape = {1}}, {.name = "b", .shape = {2}}});
}
constexpr ModelFormat kWhole{.shard_bytes = 0};
constexpr ModelFormat kShards{.shard_bytes = 4};

class StandingModelTest : public testing::Test {
 protected:
  // "": of no run.
  void Write(const std::string& run, uint64_t rounds, const ModelFormat& format = kWhole,
             FileSystem* fs = FileSystem::Posix()) {
    std::map<std::string, std::string> metadata;
    if (!run.empty())
      metadata = {{"signvote.run_id", run}, {"signvote.round", absl::StrCat(rounds)}};
    const auto writer = ModelWriter::Create(fs, path_, TwoTensors(), format, metadata);
    ASSERT_TRUE(writer.ok()) << Describe(writer.status());
    const std::vector<float> x(3, static_cast<float>(rounds));
    ASSERT_TRUE((*writer)->Append(x).ok());
    written_ = (*writer)->Commit().status();
  }
  // "A 300" of a whole model of run A; with its values, which are its rounds.
  std::string At(const std::string& name) {
    const auto model = Checkpoint::Open(fs_, dir_ / name);
    if (absl::IsNotFound(model.status())) return "";
    if (!model.ok()) return "no model";
    std::vector<float> x(3);
    EXPECT_TRUE((*model)->CopyInto(TwoTensors(), x).ok());
    const auto& metadata = (*model)->metadata();
    if (!metadata.contains("signvote.run_id")) return "of nobody's";
    EXPECT_EQ(metadata.at("signvote.round"), absl::StrCat(static_cast<uint64_t>(x[2])));
    return absl::StrCat(metadata.at("signvote.run_id"), " ", metadata.at("signvote.round"));
  }
  // What is kept, by number from 1 on, as far as there is something.
  std::vector<std::string> Kept() {
    std::vector<std::string> kept;
    for (int n = 1; n <= 16; ++n) {
      const std::string at = At(absl::StrCat("m.earlier-", n, ".st"));
      if (!at.empty()) kept.push_back(at);
    }
    return kept;
  }
  size_t Files() { return fs_->ListFiles(dir_.path())->size(); }

  TempDir dir_;
  FileSystem* const fs_ = FileSystem::Posix();
  const std::string path_ = dir_ / "m.st";
  absl::Status written_;
};

TEST_F(StandingModelTest, ARunBegunAgainCostsNoModelOfTheRunBefore) {
  for (const ModelFormat& before : {kWhole, kShards}) {
    for (const ModelFormat& after : {kWhole, kShards}) {
      std::filesystem::remove_all(dir_.path());
      std::filesystem::create_directory(dir_.path());
      Write("A", 300, before);
      Write("A", 301, before);
      EXPECT_THAT(Kept(), IsEmpty()) << "of the same run";
      Write("B", 0, after);
      EXPECT_EQ(At("m.st"), "B 0");
      EXPECT_THAT(Kept(), ElementsAre("A 301"));
      Write("B", 1, after);
      EXPECT_EQ(At("m.st"), "B 1");
      EXPECT_THAT(Kept(), ElementsAre("A 301"));
      const auto files = [](const ModelFormat& format) {
        return format.shard_bytes == 0 ? 1u : 3u;
      };
      EXPECT_EQ(Files(), files(before) + files(after)) << "and nothing else is left";
    }
  }
}

TEST_F(StandingModelTest, AServiceThatBeginsAgainAndAgainCostsNoTrainedModel) {
  Write("A", 300);
  for (const char* const run : {"B", "C", "D", "E", "F", "G"}) {
    Write(run, 0);
    ASSERT_TRUE(written_.ok()) << Describe(written_);
  }
  EXPECT_EQ(At("m.st"), "G 0");
  EXPECT_THAT(Kept(), ElementsAre("A 300", "E 0", "F 0"));
}

TEST_F(StandingModelTest, OfRunsOfOneLengthTheLastOnesAreKeptWholeOrInShards) {
  int turn = 0;
  for (const char* const run : {"A", "B", "C", "D", "E"})
    Write(run, 300, turn++ % 2 == 0 ? kWhole : kShards);
  EXPECT_EQ(At("m.st"), "E 300");
  EXPECT_THAT(Kept(), ElementsAre("B 300", "C 300", "D 300"));
  EXPECT_EQ(Files(), 1u + 3u + 1u + 3u);
}

TEST_F(StandingModelTest, TheOneOfTheFewestRoundsGoesEvenIfItCameLast) {
  for (const auto& [run, rounds] :
       {std::pair("A", 30), std::pair("B", 20), std::pair("C", 40), std::pair("D", 10)})
    Write(run, static_cast<uint64_t>(rounds));
  EXPECT_THAT(Kept(), ElementsAre("A 30", "B 20", "C 40"));
  Write("E", 50);
  EXPECT_EQ(At("m.st"), "E 50");
  EXPECT_THAT(Kept(), ElementsAre("A 30", "B 20", "C 40")) << "D had 10";
  Write("F", 0);
  EXPECT_THAT(Kept(), ElementsAre("A 30", "C 40", "E 50"));
}

// The lowest number is the oldest's, whatever a person has taken away.
TEST_F(StandingModelTest, ANameThatIsFreeAgainIsNoNewerRuns) {
  for (const char* const run : {"A", "B", "C"}) Write(run, 300);
  ASSERT_THAT(Kept(), ElementsAre("A 300", "B 300"));
  ASSERT_TRUE(fs_->Remove(dir_ / "m.earlier-1.st").ok());
  Write("D", 300);
  EXPECT_EQ(At("m.earlier-1.st"), "");
  EXPECT_EQ(At("m.earlier-2.st"), "B 300");
  EXPECT_EQ(At("m.earlier-3.st"), "C 300");
}

TEST_F(StandingModelTest, WhatIsOfNoRunIsKeptAndNeverGoes) {
  ASSERT_TRUE(WriteFileAtomically(fs_, path_, "notes", 0644).ok());
  Write("A", 1);
  Write("", 0);  // another program's model
  Write("B", 2);
  for (const char* const run : {"C", "D", "E", "F"}) Write(run, 3);
  EXPECT_EQ(*fs_->ReadFile(dir_ / "m.earlier-1.st", 100), "notes");
  EXPECT_THAT(Kept(), ElementsAre("no model", "C 3", "of nobody's", "D 3", "E 3"));
  // An empty file, as `mktemp` makes it, is nothing that could be lost.
  std::filesystem::resize_file(path_, 0);
  Write("G", 4);
  EXPECT_EQ(Kept().size(), 5u);
}

TEST_F(StandingModelTest, WithoutANameThatIsLeftNothingIsReplaced) {
  ASSERT_TRUE(WriteFileAtomically(fs_, path_, "notes", 0644).ok());
  for (int n = 1; n <= 16; ++n) {
    ASSERT_TRUE(
        WriteFileAtomically(fs_, dir_ / absl::StrCat("m.earlier-", n, ".st"), "more", 0644).ok());
  }
  Write("A", 1);
  EXPECT_EQ(ExitCodeFor(written_), ExitCode::kBadInput);
  EXPECT_THAT(Describe(written_), HasSubstr("is taken; move it away"));
  EXPECT_EQ(*fs_->ReadFile(path_, 100), "notes");
  EXPECT_EQ(Files(), 17u);
}

TEST_F(StandingModelTest, AnAttemptThatFailedBehindTheKeepingKeepsNothingTwice) {
  Write("A", 300);
  const std::map<std::string, std::string> next = {{"signvote.run_id", "B"}};
  for (int attempt = 0; attempt < 3; ++attempt) {
    ASSERT_TRUE(KeepEarlierModels(fs_, path_, next).ok());
    EXPECT_EQ(At("m.st"), "A 300") << "until it is replaced";
    EXPECT_THAT(Kept(), ElementsAre("A 300"));
  }
  Write("B", 1);
  EXPECT_THAT(Kept(), ElementsAre("A 300"));
}

TEST_F(StandingModelTest, ALinkLeadsToWhereTheModelIsKept) {
  std::filesystem::create_directory(dir_ / "shelf");
  std::filesystem::create_symlink("shelf/real.st", path_);
  Write("A", 300);
  Write("B", 1);
  EXPECT_TRUE(std::filesystem::is_symlink(path_));
  EXPECT_EQ(At("shelf/real.st"), "B 1");
  EXPECT_EQ(At("shelf/real.earlier-1.st"), "A 300");
}

}  // namespace
}  // namespace signvote
