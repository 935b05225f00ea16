#include "common/flags/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "common/file_system.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class FlagsTest : public ::testing::Test {
 protected:
  FlagsTest() {
    app_.add_option("--count", count_, "how many")->check(UnsignedBetween(1, 10));
    app_.add_option("--seed", seed_, "any")->check(AnyUnsigned());
    app_.add_option("--seconds", seconds_, "how long")->check(NumberBetween(0, 100));
    app_.add_option("--file", file_, "which")->check(Kind(ValueKind::kFile));
    app_.add_flag("--quiet", quiet_, "say nothing");
    app_.set_version_flag("--version", "program 1.2.3");
    app_.set_config("--config", "", "TOML")->check(Kind(ValueKind::kFile));
    app_.allow_config_extras(CLI::config_extras_mode::error);
  }

  absl::Status Parse(std::vector<const char*> words) {
    words.insert(words.begin(), "program");
    return ParseFlags(&app_, static_cast<int>(words.size()), words.data(), FileSystem::Posix(),
                      &print_);
  }
  void ExpectUsage(const std::vector<const char*>& words, const std::string& text) {
    const absl::Status status = Parse(words);
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kUsage) << Describe(status);
    EXPECT_THAT(Describe(status), HasSubstr(text));
    EXPECT_THAT(Describe(status), Not(HasSubstr("\n")));
  }

  CLI::App app_{"a program", "program"};
  uint64_t count_ = 1, seed_ = 0;
  double seconds_ = 1;
  std::string file_;
  bool quiet_ = false;
  std::string print_;
};

TEST_F(FlagsTest, ValuesWithinTheirBoundsAreTaken) {
  ASSERT_TRUE(Parse({"--count=10", "--seed=18446744073709551615", "--seconds=1e2"}).ok());
  EXPECT_EQ(count_, 10u);
  EXPECT_EQ(seed_, UINT64_MAX);
  EXPECT_EQ(seconds_, 100);
  EXPECT_EQ(print_, "");
}

TEST_F(FlagsTest, UnsignedNumbersHaveNoSignNoFractionAndNoMoreDigitsThanFit) {
  for (const char* text : {"--seed=-1", "--seed=+1", "--seed=1.5", "--seed=1e3", "--seed=0x10",
                           "--seed=18446744073709551616", "--seed=nan"}) {
    ExpectUsage({text},
                "--seed: '" + std::string(text).substr(7) + "' is not a whole number from 0 to ");
  }
  ExpectUsage({"--count=0"}, "--count: '0' is not a whole number from 1 to 10");
  ExpectUsage({"--count=11"}, "--count: '11' is not a whole number from 1 to 10");
}

TEST_F(FlagsTest, NumbersAreFinite) {
  for (const char* text : {"--seconds=nan", "--seconds=-nan", "--seconds=inf", "--seconds=1e400",
                           "--seconds=-1", "--seconds=1,5", "--seconds=100.1"}) {
    ExpectUsage({text},
                "--seconds: '" + std::string(text).substr(10) + "' is not a number from 0 to 100");
  }
}

TEST_F(FlagsTest, HelpShowsTheBounds) {
  ASSERT_TRUE(Parse({"--help"}).ok());
  EXPECT_THAT(print_, HasSubstr("--count UINT:UINT in [1 - 10]"));
  EXPECT_THAT(print_, HasSubstr("--seconds FLOAT:FLOAT in [0 - 100]"));
  EXPECT_THAT(print_, HasSubstr("--seed UINT "));
  print_.clear();
  ASSERT_TRUE(Parse({"--version"}).ok());
  EXPECT_EQ(print_, "program 1.2.3\n");
}

TEST_F(FlagsTest, AnUnknownFlagIsNamed) { ExpectUsage({"--cuont=1"}, "--cuont"); }

TEST_F(FlagsTest, AnUnknownCommandIsNamedWithThoseThatExist) {
  app_.add_subcommand("start", "begin");
  app_.add_subcommand("stop", "end");
  app_.require_subcommand(1);
  ExpectUsage({"strat"}, "'strat' is no command; use start, stop");
  ExpectUsage({}, "A subcommand is required");
}

TEST_F(FlagsTest, AConfigFileIsNamedWithTheKeyThatIsWrong) {
  TempDir dir;
  const std::string path = dir / "run.toml";
  const auto write = [&](std::string_view text) {
    ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), path, text, 0644).ok());
  };
  write("seed = 7\n");
  ASSERT_TRUE(Parse({"--config", path.c_str()}).ok());
  EXPECT_EQ(seed_, 7u);
  write("sede = 7\n");
  ExpectUsage({"--config", path.c_str()}, "--config: " + path + ": 'sede' is no flag");
  write("[server]\nseed = 7\n");
  ExpectUsage({"--config", path.c_str()},
              path + ":1: '[server]' is no flag; a line is NAME = VALUE, without sections");
  write("seed = -7\n");
  ExpectUsage({"--config", path.c_str()}, "--seed: '-7' is not a whole number");
  write(std::string_view("\x01\x02\x7f = 7\n", 8));
  ExpectUsage({"--config", path.c_str()}, "'" + std::string(3, ' ') + "' is no flag");
  const absl::Status status = Parse({"--config", "/does/not/exist"});
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  EXPECT_THAT(Describe(status),
              HasSubstr("--config: /does/not/exist: cannot open: No such file or directory"));
}

TEST_F(FlagsTest, AConfigThatIsNoFileIsRefusedAndNothingHangs) {
  TempDir dir;
  const std::string fifo = dir / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  for (const std::string& path : {fifo, dir.path(), std::string("/dev/zero")}) {
    const absl::Status status = Parse({"--config", path.c_str()});
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput) << path;
    EXPECT_THAT(Describe(status), HasSubstr("--config: " + path + ": not a regular file"));
  }
}

TEST_F(FlagsTest, AnEmptyValueIsRefusedBecauseNobodyMeansIt) {
  for (const std::vector<const char*>& words :
       std::vector<std::vector<const char*>>{{"--file", ""}, {"--file="}, {"--file=", "--quiet"}}) {
    ExpectUsage(words, "--file: the value is empty");
  }
  ExpectUsage({"--config", ""}, "--config: the value is empty");
  ExpectUsage({"--count", ""}, "--count: '' is not a whole number");
  EXPECT_FALSE(quiet_);
}

TEST_F(FlagsTest, AMessageHasABoundWhateverStandsInAFile) {
  TempDir dir;
  const std::string path = dir / "run.toml";
  for (const std::string& text : {std::string(100'000, 'x'), "seed = " + std::string(100'000, '7'),
                                  "file = \"" + std::string(100'000, 'x')}) {
    ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), path, text, 0644).ok());
    const absl::Status status = Parse({"--config", path.c_str()});
    EXPECT_LT(status.message().size(), 2100u);
  }
}

TEST_F(FlagsTest, AConfigFileMayBeginWithAByteOrderMarkAndEndLinesAsWindowsDoes) {
  TempDir dir;
  const std::string path = dir / "run.toml";
  ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), path,
                                  "\xef\xbb\xbf"
                                  "seed = 7\r\ncount = 3\r\n",
                                  0644)
                  .ok());
  const absl::Status status = Parse({"--config", path.c_str()});
  ASSERT_TRUE(status.ok()) << Describe(status);
  EXPECT_EQ(seed_, 7u);
  EXPECT_EQ(count_, 3u);
}

TEST_F(FlagsTest, TheFirstByteOfAMarkAloneIsNoMark) {
  TempDir dir;
  const std::string path = dir / "run.toml";
  ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), path, "\xef\xbbseed = 7\n", 0644).ok());
  ExpectUsage({"--config", path.c_str()}, "is no flag");
}

}  // namespace
}  // namespace signvote
