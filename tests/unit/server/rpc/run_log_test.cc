#include "server/rpc/run_log.h"

#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/support/temp_dir.h"

namespace signvote::rpc {
namespace {

TEST(RunLogTest, NumbersComeBackBitForBit) {
  TempDir dir;
  auto log = RunLog::Open(FileSystem::Posix(), dir / "rounds", dir / "events");
  ASSERT_TRUE(log.ok());
  EXPECT_TRUE((*log)->wants_rounds());
  round::CommitRound commit;
  commit.round = Round(7);
  commit.stepsize.gamma = 0.1f;
  commit.stepsize.reason = "alias: \"quoted\"\n";
  commit.stepsize.state = {{"eta", 1.0 / 3.0}};
  commit.counted = {3, 2};
  commit.loss = 2.0 / 3.0;
  RoundLogExtras extras;
  RoundLogExtras::Voter voter{.name = "w0", .share = Share(4)};
  voter.scalars.g_l1 = 1e300 / 7;
  voter.scalars.loss = std::numeric_limits<double>::quiet_NaN();
  voter.scalars.probe_l1 = 1.0 / 7;
  extras.voters = {voter};
  extras.members = {"w0", "w1"};
  (*log)->Round(commit, extras);
  (*log)->Event(JsonLine().Text("kind", "lost").Count("round", 7));

  const auto json = nlohmann::json::parse(*FileSystem::Posix()->ReadFile(dir / "rounds", 1 << 16));
  EXPECT_EQ(json["round"], 7);
  EXPECT_EQ(json["stepsize"].get<float>(), 0.1f);
  EXPECT_EQ(json["stepsize_bits"], "3dcccccd");
  EXPECT_EQ(json["rule"]["eta"].get<double>(), 1.0 / 3.0);
  EXPECT_EQ(json["loss"].get<double>(), 2.0 / 3.0);
  EXPECT_EQ(json["g_l1"], nullptr);
  EXPECT_EQ(json["counted"], nlohmann::json({3, 2}));
  EXPECT_EQ(json["members"], nlohmann::json({"w0", "w1"}));
  const auto& worker = json["workers"][0];
  EXPECT_EQ(worker["share"], 4);
  EXPECT_EQ(worker["g_l1"].get<double>(), 1e300 / 7);
  EXPECT_EQ(worker["probe_l1"].get<double>(), 1.0 / 7);
  EXPECT_EQ(worker["loss"], nullptr);
  EXPECT_FALSE(worker.contains("prev_inner"));
  EXPECT_EQ(*FileSystem::Posix()->ReadFile(dir / "events", 1 << 16),
            "{\"kind\":\"lost\",\"round\":7}\n");
}

TEST(RunLogTest, WithoutPathsNothingIsWritten) {
  auto log = RunLog::Open(FileSystem::Posix(), "", "");
  ASSERT_TRUE(log.ok());
  EXPECT_FALSE((*log)->wants_rounds());
  (*log)->Round({}, {});
  (*log)->Event(JsonLine().Text("kind", "lost"));
}

TEST(RunLogTest, APathThatCannotBeOpenedIsToldAtOnce) {
  TempDir dir;
  EXPECT_EQ(RunLog::Open(FileSystem::Posix(), dir / "no/where", "").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace signvote::rpc
