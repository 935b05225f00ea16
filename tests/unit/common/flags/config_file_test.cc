#include "common/flags/config_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "common/exit_codes.h"
#include "common/rng.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Plain(std::string_view text) {
  const auto plain = PlainConfig("run.toml", text);
  return plain.ok() ? *plain : Describe(plain.status());
}

class ConfigFileTest : public ::testing::Test {
 protected:
  std::map<std::string, std::vector<std::string>> Items(std::string_view text) {
    EXPECT_TRUE(WriteFileAtomically(FileSystem::Posix(), path_, text, 0644).ok());
    file_.Read(path_);
    EXPECT_TRUE(file_.status().ok()) << file_.status();
    std::istringstream ignored("seed = 13\n");
    std::map<std::string, std::vector<std::string>> items;
    for (const CLI::ConfigItem& item : file_.from_config(ignored)) items[item.name] = item.inputs;
    return items;
  }

  TempDir dir_;
  const std::string path_ = dir_ / "run.toml";
  ConfigFile file_{FileSystem::Posix()};
};

TEST(PlainConfigTest, MarksCommentsAndBlankLinesGo) {
  EXPECT_EQ(Plain("\xef\xbb\xbf# a run\r\n\r\n  seed = 7  # lucky\r\ninsecure\r\n"),
            "seed = 7\ninsecure\n");
  EXPECT_EQ(Plain(""), "");
  EXPECT_EQ(Plain("\xef\xbb\xbf"), "");
}

TEST(PlainConfigTest, AHashSignWithinQuotesIsNoComment) {
  EXPECT_EQ(Plain("data = \"/texts/#1\" # the first\n"), "data = \"/texts/#1\"\n");
  EXPECT_EQ(Plain("data = '/a\"#b' # c\n"), "data = '/a\"#b'\n");
}

TEST(PlainConfigTest, AnArrayMayHaveSeveralLines) {
  EXPECT_EQ(Plain("worker = [\"a\", # one\n  \"b\"\n]\nseed = 1\n"),
            "worker = [\"a\",\n\"b\"\n]\nseed = 1\n");
}

TEST(PlainConfigTest, ALineWithoutTheNameOfAFlagIsNamed) {
  const std::pair<std::string, const char*> cases[] = {
      {"seed = 1\n[server]\n", "run.toml:2: '[server]' is no flag; a line is NAME = VALUE"},
      {"a.b = 1\n", "run.toml:1: 'a.b' is no flag"},
      {". = 1\n", "run.toml:1: '.' is no flag"},
      {"-- = 1\n", "run.toml:1: '--' is no flag"},
      {"= 1\n", "run.toml:1: '' is no flag"},
      {"<!doctype html>\n", "run.toml:1: '<!doctype html>' is no flag"},
      {"\xff\xfes\n", "run.toml:1: '??s' is no flag"},
      {std::string("s\0e\0", 4), "run.toml:1: a byte of no text"},
  };
  for (const auto& [text, what] : cases) {
    const auto plain = PlainConfig("run.toml", text);
    EXPECT_EQ(ExitCodeFor(plain.status()), ExitCode::kUsage);
    EXPECT_THAT(Describe(plain.status()), HasSubstr(what));
  }
}

TEST_F(ConfigFileTest, ValuesAreWhatStandsInTheFile) {
  const auto items =
      Items("seed = 7\ndata = \"/texts/#1, part 2\" # first\nworker = [\"a\", \"b#\"]\n");
  EXPECT_EQ(items.size(), 3u);
  EXPECT_THAT(items.at("seed"), ElementsAre("7"));
  EXPECT_THAT(items.at("data"), ElementsAre("/texts/#1, part 2"));
  EXPECT_THAT(items.at("worker"), ElementsAre("a", "b#"));
}

TEST_F(ConfigFileTest, AFileThatCannotBeReadSaysSo) {
  file_.Read(dir_.path());
  EXPECT_EQ(ExitCodeFor(file_.status()), ExitCode::kBadInput);
  EXPECT_THAT(Describe(file_.status()), HasSubstr("--config: " + dir_.path()));
}

// Goal: no file makes CLI11 do what it must not: throw what is none of its errors, or not end.
TEST_F(ConfigFileTest, WhateverStandsInTheFileIsReadOrRefused) {
  constexpr std::string_view kParts[] = {
      "seed", "=", " ",  "\n",   "[", "]",  ",",  "\"",           "'", "#", ".",
      "-",    "1", "\t", "\r\n", ";", "[[", "++", "\xef\xbb\xbf", "{"};
  Rng rng(7, 1);
  int taken = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (uint64_t n = rng.Below(12); n > 0; --n) text += kParts[rng.Below(std::size(kParts))];
    const auto plain = PlainConfig("run.toml", text);
    if (!plain.ok()) continue;
    ++taken;
    CLI::ConfigTOML reader;
    std::istringstream stream(*plain);
    for (const CLI::ConfigItem& item : reader.from_config(stream))
      EXPECT_FALSE(item.name.empty()) << text;
  }
  EXPECT_GT(taken, 1000);
}

}  // namespace
}  // namespace signvote
