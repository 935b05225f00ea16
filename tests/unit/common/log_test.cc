#include "common/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
