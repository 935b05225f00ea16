#include "common/flags/own_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "common/flags/flags.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr ValueKind kRead[] = {ValueKind::kFile, ValueKind::kPath};
constexpr ValueKind kWritten[] = {ValueKind::kNewFile, ValueKind::kNewModel, ValueKind::kLog};

class OwnFilesTest : public ::testing::Test {
 protected:
  OwnFilesTest() {
    for (const char* const name : {"a", "b"}) {
      const std::string path = dir_ / name;
      EXPECT_TRUE(WriteFileAtomically(fs_, path, "x", 0644).ok());
    }
  }
  // Of a program with a flag of each kind, its first argument and those behind it as they are typed.
  absl::Status Parse(ValueKind first, ValueKind second, std::vector<std::string> words) {
    CLI::App app("a program", "program");
    std::string one, two;
    app.add_option("--one", one, "")->check(Kind(first))->envname("OWN_FILES_TEST_ONE");
    app.add_option("--two", two, "")->check(Kind(second));
    app.set_config("--config", "", "TOML")->check(Kind(ValueKind::kFile));
    CLI::App* const sub = app.add_subcommand("sub", "");
    sub->add_option("FILE", two, "")->check(Kind(second));
    std::vector<const char*> argv = {"program"};
    for (const std::string& word : words) argv.push_back(word.c_str());
    std::string print;
    return ParseFlags(&app, static_cast<int>(argv.size()), argv.data(), fs_, &print);
  }
  void ExpectRefused(const absl::Status& status, const std::string& one, const std::string& two) {
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kUsage) << Describe(status);
    EXPECT_THAT(Describe(status), AllOf(HasSubstr(one), HasSubstr(two), Not(HasSubstr("\n"))));
  }

  TempDir dir_;
  FileSystem* const fs_ = FileSystem::Posix();
  const std::string a_ = dir_ / "a", b_ = dir_ / "b";
};

TEST_F(OwnFilesTest, AFileThatIsWrittenIsNoOtherFlagsWhateverItsKind) {
  for (const ValueKind written : kWritten) {
    for (const std::string& path : {a_, dir_ / "new"}) {
      for (const ValueKind other : kWritten) {
        ExpectRefused(Parse(written, other, {"--one", path, "--two", path}), "--one " + path,
                      "--two");
        EXPECT_TRUE(Parse(written, other, {"--one", path, "--two", b_}).ok());
        EXPECT_TRUE(Parse(written, other, {"--one", path}).ok());
      }
    }
    for (const ValueKind other : kRead) {
      ExpectRefused(Parse(written, other, {"--one", a_, "--two", a_}), "--one " + a_, "--two");
      ExpectRefused(Parse(other, written, {"--one", a_, "--two", a_}), "--one " + a_, "--two");
    }
  }
}

TEST_F(OwnFilesTest, WhatIsOnlyReadMayBeSharedAndFoldersAndDevicesToo) {
  for (const ValueKind one : kRead) {
    for (const ValueKind two : kRead) EXPECT_TRUE(Parse(one, two, {"--one", a_, "--two", a_}).ok());
  }
  EXPECT_TRUE(
      Parse(ValueKind::kLog, ValueKind::kLog, {"--one", "/dev/null", "--two", "/dev/null"}).ok());
  EXPECT_TRUE(
      Parse(ValueKind::kFolder, ValueKind::kNewFolder, {"--one", dir_.path(), "--two", dir_.path()})
          .ok());
}

TEST_F(OwnFilesTest, NamesOfOneFileAreRecognised) {
  std::filesystem::create_symlink("a", dir_ / "link");
  std::filesystem::create_symlink(".", dir_ / "here");
  for (const char* const name : {"./a", "link", "here/a", "here/link"}) {
    ExpectRefused(
        Parse(ValueKind::kNewModel, ValueKind::kNewFile, {"--one", a_, "--two", dir_ / name}),
        "--one", "--two");
  }
  ExpectRefused(Parse(ValueKind::kLog, ValueKind::kNewFile,
                      {"--one", dir_ / "here/new", "--two", dir_ / "new"}),
                "--one", "--two");
}

TEST_F(OwnFilesTest, WhereverAFlagsValueComesFrom) {
  const std::string config = dir_ / "config.toml";
  ASSERT_TRUE(WriteFileAtomically(fs_, config, "two = \"" + a_ + "\"\n", 0644).ok());
  ExpectRefused(Parse(ValueKind::kNewModel, ValueKind::kLog, {"--one", a_, "--config", config}),
                "--one", "--two");
  ExpectRefused(Parse(ValueKind::kNewModel, ValueKind::kLog, {"--one", config, "--config", config}),
                "--one " + config, "--config");
  ExpectRefused(Parse(ValueKind::kFile, ValueKind::kNewModel, {"--one", a_, "sub", a_}), "--one",
                "FILE");
  ::setenv("OWN_FILES_TEST_ONE", a_.c_str(), 1);
  ExpectRefused(Parse(ValueKind::kFile, ValueKind::kNewModel, {"sub", a_}), "--one", "FILE");
  ::unsetenv("OWN_FILES_TEST_ONE");
}

TEST_F(OwnFilesTest, WhatAModelWritesBesideItIsNoOtherFlagsToWrite) {
  const std::string model = dir_ / "m";
  for (const std::string& beside : {dir_ / "config.json", model + ".index.json"}) {
    for (const ValueKind other : kWritten) {
      if (other == ValueKind::kNewModel && beside.ends_with("config.json")) continue;
      ExpectRefused(Parse(ValueKind::kNewModel, other, {"--one", model, "--two", beside}),
                    "--two " + beside, "--one");
      ExpectRefused(Parse(other, ValueKind::kNewModel, {"--one", beside, "--two", model}),
                    "--one " + beside, "--two");
    }
    // The config that a model is made from is the user's, and joined.
    ASSERT_TRUE(WriteFileAtomically(fs_, beside, "{}", 0644).ok());
    for (const ValueKind other : kRead)
      EXPECT_TRUE(Parse(ValueKind::kNewModel, other, {"--one", model, "--two", beside}).ok());
  }
}

TEST_F(OwnFilesTest, NoModelIsCalledAsItsConfigIs) {
  const std::string path = dir_ / "config.json";
  ExpectRefused(Parse(ValueKind::kNewModel, ValueKind::kLog, {"--one", path}), "--one " + path,
                "give it another name");
  EXPECT_TRUE(Parse(ValueKind::kNewFile, ValueKind::kLog, {"--one", path}).ok());
}

}  // namespace
}  // namespace signvote
