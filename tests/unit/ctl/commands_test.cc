#include "ctl/commands.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/process.h"

namespace signvote::ctl {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

// Notes what it is asked, and answers with `answer`.
class FakeClient final : public AdminClient {
 public:
  FakeClient(std::vector<std::string>* asked, absl::Status answer, bool has_config)
      : asked_(asked), answer_(std::move(answer)), has_config_(has_config) {}

  absl::StatusOr<v1::Status> GetStatus() override {
    asked_->push_back("status");
    if (!answer_.ok()) return answer_;
    v1::Status status;
    status.set_run_id("run-7");
    return status;
  }
  absl::StatusOr<v1::WatchReply> Watch(uint64_t, Duration) override {
    asked_->push_back("watch");
    return answer_;
  }
  void Cancel() override {}
  absl::Status Pause() override { return Note("pause"); }
  absl::Status Resume() override { return Note("resume"); }
  absl::Status Drain(const std::string& worker) override { return Note("drain " + worker); }
  absl::Status Evict(const std::string& worker) override { return Note("evict " + worker); }
  absl::StatusOr<Exported> Export(FileSystem*, const std::string& path,
                                  const ModelFormat& format) override {
    asked_->push_back("export " + path);
    if (!answer_.ok()) return answer_;
    const bool whole = format.shard_bytes != 1;
    return Exported{.round = 9,
                    .model = {.path = whole ? path : ShardIndexPath(path),
                              .bytes = 512,
                              .files = whole ? 1u : 3u},
                    .has_config = has_config_};
  }

 private:
  absl::Status Note(std::string what) {
    asked_->push_back(std::move(what));
    return answer_;
  }

  std::vector<std::string>* const asked_;
  const absl::Status answer_;
  const bool has_config_;
};

class CommandsTest : public testing::Test {
 protected:
  absl::Status Run(const CtlFlags& flags) {
    printed_.clear();
    return RunCommand(
        flags,
        {.fs = FileSystem::Posix(),
         .clock = &clock_,
         .print = [this](const std::string& text) { printed_ += text; },
         .create_client =
             [this](FileSystem*, const AdminClientOptions& options,
                    int64_t now_unix_seconds) -> absl::StatusOr<std::unique_ptr<AdminClient>> {
           dialled_.push_back(options.server);
           dialled_at_ = now_unix_seconds;
           return std::make_unique<FakeClient>(&asked_, answer_, has_config_);
         },
         .become =
             [this](const std::string& name, const std::vector<std::string>& arguments) {
               became_ = arguments;
               became_.insert(became_.begin(), name);
               return answer_;
             }});
  }
  absl::Status Run(Command command) {
    return Run(CtlFlags{.command = command,
                        .admin = {.server = "h:1", .tls = {}},
                        .worker = "alpha",
                        .file = "m.safetensors"});
  }

  FakeClock clock_;
  absl::Status answer_;
  bool has_config_ = false;
  std::vector<std::string> asked_, dialled_, became_;
  int64_t dialled_at_ = 0;
  std::string printed_;
};

TEST_F(CommandsTest, EachCommandAsksTheServerForItAndSaysWhatCameOfIt) {
  clock_.Advance(std::chrono::seconds(77));
  for (const auto& [command, asked, says] :
       std::vector<std::tuple<Command, std::string, std::string>>{
           {Command::kPause, "pause",
            "paused: the open round completes, no further one opens until `signvote resume`\n"},
           {Command::kResume, "resume", "resumed\n"},
           {Command::kDrain, "drain alpha", "alpha: asked to finish its round and leave\n"},
           {Command::kEvict, "evict alpha",
            "alpha: evicted; its name is refused for the rest of the run\n"},
           {Command::kExport, "export m.safetensors", "m.safetensors: round 9, 512 bytes\n"}}) {
    asked_.clear();
    dialled_.clear();
    EXPECT_TRUE(Run(command).ok());
    EXPECT_THAT(asked_, ElementsAre(asked));
    EXPECT_THAT(dialled_, ElementsAre("h:1"));
    EXPECT_EQ(dialled_at_, 77);
    EXPECT_EQ(printed_, says);
  }
}

TEST_F(CommandsTest, LabBecomesTheProgramBesideWithTheSameWordsAndDialsNobody) {
  answer_ = absl::UnavailableError("it is not there");
  EXPECT_EQ(Run(CtlFlags{.command = Command::kLab, .lab = {"sweep", "a.toml"}}), answer_);
  EXPECT_THAT(became_, ElementsAre("signvote-lab", "sweep", "a.toml"));
  EXPECT_THAT(dialled_, IsEmpty());
}

TEST_F(CommandsTest, LabRunBecomesTheProgramThatNeedsNoLibTorch) {
  EXPECT_EQ(Run(CtlFlags{.command = Command::kLab, .lab = {"run", "a.toml", "--dry-run"}}),
            answer_);
  EXPECT_THAT(became_, ElementsAre("signvote-lab-run", "a.toml", "--dry-run"));
}

TEST_F(CommandsTest, AProgramThatIsNotThereIsNamedWithWhatItTakes) {
  const absl::Status status = BecomeProgram("no-such-program", {});
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("/no-such-program cannot be started"));
}

TEST_F(CommandsTest, WhatTheServerRefusesIsReturnedAndNothingIsSaid) {
  answer_ = absl::NotFoundError("no worker named alpha is connected");
  for (const Command command : {Command::kStatus, Command::kPause, Command::kResume,
                                Command::kDrain, Command::kEvict, Command::kExport}) {
    EXPECT_EQ(Run(command), answer_);
    EXPECT_EQ(printed_, "");
  }
}

TEST_F(CommandsTest, AnExportWithAConfigurationSaysThatItLiesBeside) {
  has_config_ = true;
  EXPECT_TRUE(Run(Command::kExport).ok());
  EXPECT_THAT(printed_, HasSubstr(", config.json beside it\n"));
  EXPECT_TRUE(Run(CtlFlags{.command = Command::kExport,
                           .admin = {.server = "h:1", .tls = {}},
                           .file = "m.st",
                           .format = {.shard_bytes = 1}})
                  .ok());
  EXPECT_THAT(printed_, HasSubstr("m.st.index.json: round 9, 512 bytes in 3 files"));
}

TEST_F(CommandsTest, TheStatusIsATableOrOneJsonObject) {
  EXPECT_TRUE(Run(Command::kStatus).ok());
  EXPECT_THAT(printed_, HasSubstr("run-7"));
  EXPECT_THAT(printed_, Not(StartsWith("{")));
  EXPECT_TRUE(Run(CtlFlags{.command = Command::kStatus, .json = true}).ok());
  EXPECT_THAT(printed_, StartsWith("{"));
  EXPECT_THAT(printed_, HasSubstr("run-7"));
}

TEST_F(CommandsTest, CertsNamesWhatItMadeAndWhatItKeptAndAsksNobody) {
  std::string root = testing::TempDir() + "commands_test.XXXXXX";
  ASSERT_NE(mkdtemp(root.data()), nullptr);
  clock_.Advance(std::chrono::hours(24 * 365 * 50));
  const CtlFlags flags{.command = Command::kCerts,
                       .certs = {.directory = root + "/tls", .server_names = {}, .workers = {"a"}}};
  EXPECT_TRUE(Run(flags).ok());
  EXPECT_THAT(printed_, HasSubstr("made  " + root + "/tls/ca.crt\n"));
  EXPECT_THAT(printed_, HasSubstr("made  " + root + "/tls/workers/a/worker.key\n"));
  EXPECT_TRUE(Run(flags).ok()) << "the certificates are valid at the clock's time";
  EXPECT_THAT(printed_, HasSubstr("kept  " + root + "/tls/ca.crt\n"));
  EXPECT_THAT(printed_, Not(HasSubstr("made")));
  EXPECT_TRUE(dialled_.empty());
  std::filesystem::remove_all(root);
}

TEST_F(CommandsTest, TheVersionIsToldWithoutAServer) {
  EXPECT_TRUE(Run(Command::kVersion).ok());
  EXPECT_EQ(printed_, "signvote " + std::string(SoftwareVersion()) + "\n");
  EXPECT_TRUE(dialled_.empty());
}

}  // namespace
}  // namespace signvote::ctl
