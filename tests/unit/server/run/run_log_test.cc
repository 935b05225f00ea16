#include "server/run/run_log.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

namespace signvote::run {
namespace {

TEST(RoundLine, NumbersComeBackBitForBit) {
  round::CommitRound commit;
  commit.round = Round(7);
  commit.attempt = Attempt(1);
  commit.data_step = DataStep(8);
  commit.next_data_step = DataStep(9);
  commit.main_rounds = 6;
  commit.gamma = 0.1f;
  commit.reason = "alias: \"quoted\"\n";
  commit.rule.state = {{"eta", 1.0 / 3.0}};
  commit.chunks = {{.counted = 3}, {.counted = 2}};
  commit.asked = {ScalarKind::kProbeL1, ScalarKind::kX0Distance};
  commit.loss = 2.0 / 3.0;
  commit.abstentions = 1;
  commit.opened_for = std::chrono::milliseconds(1500);
  RoundLogExtras extras;
  RoundLogExtras::Voter voter{.name = "w0", .share = Share(4)};
  voter.scalars.g_l1 = 1e300 / 7;
  voter.scalars.loss = std::numeric_limits<double>::quiet_NaN();
  voter.scalars.wanted = {1.0 / 7};
  voter.incarnation = 5;
  extras.voters = {voter};
  extras.members = {"w0", "w1"};
  extras.counted_workers = {"w0"};
  extras.payload_hash = 0xabc;
  const auto json = nlohmann::json::parse(RoundLine(commit, extras));
  EXPECT_EQ(json["round"], 7);
  EXPECT_EQ(json["attempt"], 1);
  EXPECT_EQ(json["kind"], "step");
  EXPECT_EQ(json["data_step"], 8);
  EXPECT_EQ(json["next_data_step"], 9);
  EXPECT_EQ(json["main_rounds"], 6);
  EXPECT_EQ(json["stepsize"].get<float>(), 0.1f);
  EXPECT_EQ(json["stepsize_bits"], "3dcccccd");
  EXPECT_EQ(json["reason"], "alias: \"quoted\"\n");
  EXPECT_EQ(json["rule"]["eta"].get<double>(), 1.0 / 3.0);
  EXPECT_TRUE(json["race"].empty()) << "the rule runs no trials";
  EXPECT_EQ(json["loss"].get<double>(), 2.0 / 3.0);
  EXPECT_EQ(json["g_l1"], nullptr);
  EXPECT_EQ(json["counted"], nlohmann::json({3, 2}));
  EXPECT_EQ(json["members"], nlohmann::json({"w0", "w1"}));
  EXPECT_EQ(json["voters"], nlohmann::json::array({"w0"}));
  EXPECT_EQ(json["abstentions"], 1);
  EXPECT_EQ(json["payload_hash"], "0000000000000abc");
  EXPECT_EQ(json["seconds"], 1.5);
  const auto& worker = json["workers"][0];
  EXPECT_EQ(worker["share"], 4);
  EXPECT_EQ(worker["incarnation"], 5);
  EXPECT_EQ(worker["g_l1"].get<double>(), 1e300 / 7);
  EXPECT_EQ(worker["probe_l1"].get<double>(), 1.0 / 7);
  EXPECT_EQ(worker["loss"], nullptr);
  // It was asked for, and the worker did not say.
  EXPECT_FALSE(worker.contains("x0_distance"));
}

TEST(RoundLine, ACommitThatMovesNothingHasItsKind) {
  round::CommitRound commit;
  commit.kind = CommitKind::kNone;
  const auto json = nlohmann::json::parse(RoundLine(commit, {}));
  EXPECT_EQ(json["kind"], "none");
  EXPECT_EQ(json["counted"], nlohmann::json::array());
  EXPECT_EQ(json["loss"], nullptr);
}

TEST(JsonLine, TextThatIsNoUtf8IsReplaced) {
  EXPECT_EQ(JsonLine().Text("kind", "lost").Count("round", 7).Object(),
            "{\"kind\":\"lost\",\"round\":7}");
  EXPECT_EQ(nlohmann::json::parse(JsonLine().Text("a", "\xff").Object())["a"], "\xEF\xBF\xBD");
  EXPECT_EQ(JsonLine().Number("a", std::numeric_limits<double>::infinity()).Object(),
            "{\"a\":null}");
}

}  // namespace
}  // namespace signvote::run
