#include "server/init_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/checkpoint.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/export_metadata.h"
#include "common/model_file.h"
#include "common/saved_run.h"
#include "common/status.h"
#include "server/run/run_save.h"
#include "server/run/settings.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;

class InitRunTest : public ::testing::Test {
 protected:
  InitRunTest() {
    flags_.init_path = dir_ / "m.safetensors";
    flags_.run.rule.rule = "fixed";
    flags_.run.main_rounds_max = 100;
    run_.run_id = RunId::FromRandom(1, 2);
    run_.epoch = Epoch(3);
    run_.layout = *Layout::Make({{.name = "b", .shape = {1}}, {.name = "a", .shape = {2}}});
    run_.engine.round = Round(7);
  }
  uint64_t DigestOf(const std::vector<float>& x) { return ReplicaDigest(x.data(), 0, x.size()); }
  // As a worker writes it.
  void Save(bool with_x0 = false) {
    v1::JournalHead head;
    run::FillBody(run_, head.mutable_run());
    run::FillSettings(flags_.run, &head);
    SavedRun saved{.head = head.SerializeAsString(),
                   .after = run::StateForSave(run_),
                   .digest = DigestOf(x_),
                   .run_id = run_.run_id};
    saved.round = Round(7);
    if (with_x0) saved.x0 = {.file = "m.x0.safetensors", .digest = DigestOf(x0_)};
    std::map<std::string, std::string> metadata =
        ExportMetadata({.run_id = run_.run_id, .round = Round(7), .rule = "fixed", .stepsize = {}});
    AddSavedRun(saved, &metadata);
    Write("m.safetensors", x_, metadata);
    if (with_x0) Write("m.x0.safetensors", x0_, {});
  }
  void Write(const std::string& name, const std::vector<float>& x,
             const std::map<std::string, std::string>& metadata) {
    ASSERT_TRUE(WriteModel(fs_, dir_ / name, {}, run_.layout, x, metadata, "").ok());
  }
  absl::StatusOr<std::optional<run::RunState>> TakeUp() {
    return TakeUpInitRun(fs_, clock_, flags_, [] { return false; });
  }
  void ExpectNew() {
    const auto state = TakeUp();
    ASSERT_TRUE(state.ok()) << Describe(state.status());
    EXPECT_FALSE(state->has_value());
  }
  void ExpectRefused(const std::string& text) {
    const absl::Status status = TakeUp().status();
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput) << Describe(status);
    EXPECT_THAT(Describe(status), HasSubstr("--init: " + flags_.init_path));
    EXPECT_THAT(Describe(status), HasSubstr(text));
    EXPECT_THAT(Describe(status), HasSubstr("--init-as new"));
  }

  TempDir dir_;
  FileSystem* const fs_ = FileSystem::Posix();
  FakeClock clock_;
  ServerFlags flags_;
  run::RunState run_;
  std::vector<float> x_ = {1, 2, 3}, x0_ = {4, 5, 6};
};

TEST_F(InitRunTest, TheRunOfAWorkersSaveGoesOn) {
  Save();
  for (const InitAs as : {InitAs::kAuto, InitAs::kContinue}) {
    flags_.init_as = as;
    const auto state = TakeUp();
    ASSERT_TRUE(state.ok()) << Describe(state.status());
    ASSERT_TRUE(state->has_value());
    EXPECT_EQ((*state)->run_id, run_.run_id);
    EXPECT_EQ((*state)->engine.round, Round(7));
    EXPECT_EQ((*state)->epoch, Epoch(4));
    EXPECT_EQ(*(*state)->x, x_);
    EXPECT_EQ((*state)->x0, nullptr);
  }
  flags_.init_as = InitAs::kNew;
  ExpectNew();
}

TEST_F(InitRunTest, WhatTheRunStartedWithComesFromTheFileBesideIt) {
  Save(/*with_x0=*/true);
  const auto state = TakeUp();
  ASSERT_TRUE(state.ok()) << Describe(state.status());
  EXPECT_EQ(*(*state)->x0, x0_);
  Write("m.x0.safetensors", x_, {});
  ExpectRefused("m.x0.safetensors: its parameters have the digest");
  ASSERT_TRUE(fs_->Remove(dir_ / "m.x0.safetensors").ok());
  ExpectRefused("the parameters that the run started with");
}

TEST_F(InitRunTest, AFileWithoutARunBeginsANewOneUnlessOneIsToGoOn) {
  Write("m.safetensors", x_, {});
  ExpectNew();
  flags_.init_as = InitAs::kContinue;
  ExpectRefused("it carries none");
}

TEST_F(InitRunTest, ARunThatIsOverBeginsANewOneUnlessItIsToGoOn) {
  run_.engine.course.run_done = true;
  Save();
  ExpectNew();
  flags_.init_as = InitAs::kContinue;
  const auto state = TakeUp();
  ASSERT_TRUE(state.ok()) << Describe(state.status());
  EXPECT_TRUE(state->has_value());
}

TEST_F(InitRunTest, AReplicaThatIsNotTheRunsIsRefused) {
  Save();
  const auto metadata = (*Checkpoint::Open(fs_, flags_.init_path))->metadata();
  Write("m.safetensors", {1, 2, 4}, metadata);
  ExpectRefused("m.safetensors: its parameters have the digest");
}

TEST_F(InitRunTest, DamagedWordsOfTheRunAreRefused) {
  Save();
  auto metadata = (*Checkpoint::Open(fs_, flags_.init_path))->metadata();
  metadata["signvote.run_state"] = "AAAA";
  Write("m.safetensors", x_, metadata);
  ExpectRefused("is damaged");
}

TEST_F(InitRunTest, OtherSettingsAreRefusedByTheirFlag) {
  Save();
  flags_.run.rule.rule = "alias";
  ExpectRefused("start it with --rule fixed");
}

TEST_F(InitRunTest, WithoutAFileThereIsNothingToGoOnFrom) {
  flags_.init_path.clear();
  ExpectNew();
}

}  // namespace
}  // namespace signvote
