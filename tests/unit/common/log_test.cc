#include "common/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

namespace signvote {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

class LogTest : public ::testing::Test {
 protected:
  void TearDown() override { InitLogging({}); }
  template <typename F>
  static std::string Captured(F f) {
    ::testing::internal::CaptureStderr();
    f();
    EXPECT_TRUE(FlushLog(std::chrono::seconds(60)));
    return ::testing::internal::GetCapturedStderr();
  }
};

TEST_F(LogTest, TextHasTimeLevelMessageAndFields) {
  InitLogging({});
  const std::string line = Captured([] {
    LogInfo("round committed",
            {{"round", uint64_t{7}}, {"delta", int64_t{-3}}, {"gamma", 0.25}, {"worker", "w1"}});
  });
  EXPECT_THAT(
      line, MatchesRegex(
                "[0-9-]+T[0-9:.]+Z info round committed round=7 delta=-3 gamma=0.25 worker=w1\n"));
}

TEST_F(LogTest, AValueCannotForgeASecondLine) {
  InitLogging({});
  const std::string line = Captured([] {
    LogError("bad\nname", {{"name", std::string("x\n2024 info forged\x1b[31m \"q\"")}});
  });
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  EXPECT_THAT(line, HasSubstr("error bad name name=\"x\\n2024 info forged\\x1b[31m \\\"q\\\"\""));
}

TEST_F(LogTest, TextCannotBeTurnedAroundNorSteerATerminal) {
  InitLogging({});
  const std::string line = Captured([] {
    LogError("a\xC2\x9B b\xE2\x80\xAE c", {{"x", std::string("\xC2\x9B\xE2\x80\xAE\x9B é")}});
  });
  EXPECT_THAT(line, HasSubstr("error a  b  c x=\"\\xc2\\x9b\\xe2\\x80\\xae\\x9b é\"\n"));
}

TEST_F(LogTest, JsonIsOneObjectALineWithNumbersAsNumbers) {
  InitLogging({.level = LogLevel::kDebug, .format = LogFormat::kJson});
  const std::string line = Captured([] {
    LogWarning("worker \"lost\"\n", {{"round", uint64_t{1} << 63},
                                     {"share", int64_t{-1}},
                                     {"loss", 1.5},
                                     {"name", std::string("\xFF\n")}});
  });
  ASSERT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  const auto json = nlohmann::json::parse(line, nullptr, false);
  ASSERT_TRUE(json.is_object()) << line;
  EXPECT_EQ(json["level"], "warning");
  EXPECT_EQ(json["message"], "worker \"lost\"\n");
  EXPECT_EQ(json["round"], uint64_t{1} << 63);
  EXPECT_EQ(json["share"], -1);
  EXPECT_EQ(json["loss"], 1.5);
  EXPECT_THAT(json["time"].get<std::string>(), MatchesRegex("[0-9-]+T[0-9:]+[.][0-9]+Z"));
  EXPECT_EQ(json["name"], "\xEF\xBF\xBD\n");
}

TEST_F(LogTest, MessagesBelowTheLevelAreNotWritten) {
  InitLogging({.level = LogLevel::kWarning});
  const std::string lines = Captured([] {
    LogDebug("one");
    LogInfo("two");
    LogWarning("three");
    LogError("four");
  });
  EXPECT_THAT(lines, Not(HasSubstr("one")));
  EXPECT_THAT(lines, Not(HasSubstr("two")));
  EXPECT_THAT(lines, HasSubstr("three"));
  EXPECT_THAT(lines, HasSubstr("four"));
}

TEST_F(LogTest, ThreadsDoNotMixTheirLines) {
  InitLogging({.format = LogFormat::kJson});
  const std::string lines = Captured([] {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < 50; ++i) LogInfo("line", {{"thread", int64_t{t}}});
      });
    }
  });
  size_t begin = 0;
  int count = 0;
  for (size_t end; (end = lines.find('\n', begin)) != std::string::npos; begin = end + 1, ++count) {
    ASSERT_TRUE(nlohmann::json::accept(lines.substr(begin, end - begin)))
        << lines.substr(begin, end - begin);
  }
  EXPECT_EQ(count, 200);
}

// Goal: whoever logs never waits for whoever reads. Method: standard error is a pipe that nobody
// reads, and far more is logged than it holds.
TEST_F(LogTest, APipeThatNobodyReadsHoldsNobodyUp) {
  InitLogging({});
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const int saved = ::dup(STDERR_FILENO);
  ASSERT_GE(::dup2(ends[1], STDERR_FILENO), 0);
  const uint64_t before = DroppedLogLines();
  const std::string text(200, 'x');
  for (int i = 0; i < 20'000; ++i) LogInfo(text);  // a pipe holds 64 KiB, the queue a MiB
  const bool flushed = FlushLog(std::chrono::milliseconds(10));
  const uint64_t dropped = DroppedLogLines() - before;
  // A reader comes at last; the queue empties.
  std::string read;
  std::thread reader([&] {
    char buffer[4096];
    for (ssize_t n; (n = ::read(ends[0], buffer, sizeof(buffer))) > 0;) {
      read.append(buffer, static_cast<size_t>(n));
    }
  });
  EXPECT_TRUE(FlushLog(std::chrono::seconds(60)));
  LogInfo("the last line");
  EXPECT_TRUE(FlushLog(std::chrono::seconds(60)));
  ASSERT_GE(::dup2(saved, STDERR_FILENO), 0);
  ::close(saved);
  ::close(ends[1]);
  reader.join();
  ::close(ends[0]);
  EXPECT_FALSE(flushed);
  EXPECT_GT(dropped, 10'000u);
  // Told each time that lines could be written again.
  constexpr std::string_view kLost =
      "log lines are lost: standard error was not read in time lines=";
  uint64_t told = 0;
  for (size_t at = 0; (at = read.find(kLost, at)) != std::string::npos;) {
    at += kLost.size();
    told += std::stoull(read.substr(at));
  }
  EXPECT_EQ(told, dropped);
  EXPECT_TRUE(read.ends_with("the last line\n"));
}

TEST_F(LogTest, WordsForLevelAndFormatAreParsedAndOthersRefused) {
  LogLevel level = LogLevel::kInfo;
  EXPECT_TRUE(ParseLogLevel("debug", &level).ok());
  EXPECT_EQ(level, LogLevel::kDebug);
  EXPECT_TRUE(ParseLogLevel("error", &level).ok());
  EXPECT_EQ(level, LogLevel::kError);
  const absl::Status status = ParseLogLevel("loud", &level);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("debug, info, warning or error"));
  EXPECT_EQ(level, LogLevel::kError);
  LogFormat format = LogFormat::kText;
  EXPECT_TRUE(ParseLogFormat("json", &format).ok());
  EXPECT_EQ(format, LogFormat::kJson);
  EXPECT_TRUE(ParseLogFormat("text", &format).ok());
  EXPECT_EQ(format, LogFormat::kText);
  EXPECT_THAT(std::string(ParseLogFormat("xml", &format).message()), HasSubstr("text or json"));
}

}  // namespace
}  // namespace signvote
