#include "server/run/roster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <variant>
#include <vector>

namespace signvote::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr Time At(Duration d) { return Time{} + d; }

class RosterTest : public ::testing::Test {
 protected:
  Roster Make(Roster::Options options = {}) { return Roster(options, {}, Time{}); }

  // Opens a stream and joins. REQUIRES: it is accepted.
  static Roster::Accepted Joined(Roster& roster, uint64_t peer, const std::string& name,
                                 Time now = {}) {
    EXPECT_THAT(roster.Open(PeerId(peer), now), IsEmpty());
    const Roster::Answer answer = roster.Join(PeerId(peer), name, now);
    EXPECT_TRUE(std::holds_alternative<Roster::Accepted>(answer));
    return std::get<Roster::Accepted>(answer);
  }
};

TEST_F(RosterTest, TheTableOfStagesIsThatOfTheHeader) {
  using enum Stage;
  const std::vector<std::pair<Stage, std::vector<Stage>>> table = {
      {kConnected, {kHeld, kWaitingState, kClosing}},
      {kHeld, {kWaitingState, kClosing}},
      {kWaitingState, {kUploading, kFetching, kKeeping, kClosing}},
      {kUploading, {kCatchingUp, kClosing}},
      {kFetching, {kFetching, kCatchingUp, kClosing}},
      {kKeeping, {kFetching, kCatchingUp, kClosing}},
      {kCatchingUp, {kFetching, kReady, kClosing}},
      {kReady, {kFetching, kClosing}},
      {kClosing, {}},
  };
  ASSERT_EQ(table.size(), kStages);
  for (const auto& [from, followers] : table) {
    for (size_t to = 0; to < kStages; ++to) {
      const Stage stage = static_cast<Stage>(to);
      const bool listed = std::find(followers.begin(), followers.end(), stage) != followers.end();
      EXPECT_EQ(MayFollow(from, stage), listed) << Words(from) << " to " << Words(stage);
    }
  }
}

TEST_F(RosterTest, EachJoinOfANameHasTheNextIncarnationAndTheSameNumber) {
  Roster roster = Make();
  const Roster::Accepted a = Joined(roster, 1, "a");
  const Roster::Accepted b = Joined(roster, 2, "b");
  EXPECT_EQ(a.incarnation, Incarnation(1));
  EXPECT_NE(a.worker, b.worker);
  const auto gone = roster.Close(PeerId(1), At(seconds(1)));
  ASSERT_TRUE(gone.has_value());
  EXPECT_TRUE(gone->was_live);
  EXPECT_EQ(gone->worker, a.worker);
  EXPECT_EQ(gone->incarnation, Incarnation(1));
  EXPECT_EQ(gone->stage, Stage::kWaitingState);
  EXPECT_FALSE(gone->successor.has_value());
  EXPECT_FALSE(roster.Close(PeerId(1), At(seconds(1))).has_value());
  const Roster::Accepted again = Joined(roster, 3, "a", At(seconds(2)));
  EXPECT_EQ(again.worker, a.worker);
  EXPECT_EQ(again.incarnation, Incarnation(2));
  EXPECT_EQ(roster.FindLive(a.worker, Incarnation(1)), nullptr);
  ASSERT_NE(roster.FindLive(a.worker, Incarnation(2)), nullptr);
  EXPECT_EQ(roster.FindLive(a.worker, Incarnation(2))->peer, PeerId(3));
}

TEST_F(RosterTest, ASecondStreamOfANameIsHeldAndAThirdRefused) {
  Roster roster = Make();
  (void)Joined(roster, 1, "a");
  roster.Open(PeerId(2), Time{});
  const Roster::Answer held = roster.Join(PeerId(2), "a", Time{});
  ASSERT_TRUE(std::holds_alternative<Roster::Held>(held));
  EXPECT_EQ(std::get<Roster::Held>(held).live, PeerId(1));
  EXPECT_EQ(roster.FindStream(PeerId(2))->stage, Stage::kHeld);
  roster.Open(PeerId(3), Time{});
  const Roster::Answer third = roster.Join(PeerId(3), "a", Time{});
  ASSERT_TRUE(std::holds_alternative<absl::Status>(third));
  EXPECT_EQ(std::get<absl::Status>(third).code(), absl::StatusCode::kAlreadyExists);
  // It stands for nobody: that it goes changes nothing.
  EXPECT_FALSE(roster.Close(PeerId(3), Time{}).has_value());
  EXPECT_EQ(roster.FindWorker("a")->held, PeerId(2));
}

TEST_F(RosterTest, ALiveStreamThatAnswersHasTheHeldOneRefused) {
  Roster roster = Make();
  (void)Joined(roster, 1, "a");
  EXPECT_FALSE(roster.Pong(PeerId(1)).has_value());
  roster.Open(PeerId(2), Time{});
  (void)roster.Join(PeerId(2), "a", Time{});
  EXPECT_FALSE(roster.Pong(PeerId(2)).has_value());
  EXPECT_FALSE(roster.Pong(PeerId(77)).has_value());
  const auto refused = roster.Pong(PeerId(1));
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->first, PeerId(2));
  EXPECT_EQ(refused->second.code(), absl::StatusCode::kAlreadyExists);
  const auto gone = roster.Close(PeerId(2), Time{});
  ASSERT_TRUE(gone.has_value());
  EXPECT_FALSE(gone->was_live);
  EXPECT_EQ(gone->incarnation, Incarnation(0));
  EXPECT_FALSE(roster.FindWorker("a")->held.has_value());
  EXPECT_EQ(roster.FindWorker("a")->live, PeerId(1));
  EXPECT_FALSE(roster.Pong(PeerId(1)).has_value());
}

TEST_F(RosterTest, ASilentLiveStreamIsFencedAfterThePingTimeoutAndTheHeldOneTakesItsPlace) {
  Roster roster = Make({.ping_timeout = seconds(1)});
  const Roster::Accepted first = Joined(roster, 1, "a");
  roster.Open(PeerId(2), At(seconds(5)));
  (void)roster.Join(PeerId(2), "a", At(seconds(5)));
  EXPECT_EQ(roster.NextFence(), At(seconds(6)));
  EXPECT_THAT(roster.Fence(At(milliseconds(5'999))).close, IsEmpty());
  const Roster::Due due = roster.Fence(At(seconds(6)));
  ASSERT_EQ(due.close.size(), 1u);
  EXPECT_EQ(due.close[0].first, PeerId(1));
  EXPECT_EQ(due.close[0].second.code(), absl::StatusCode::kAborted);
  const auto gone = roster.Close(PeerId(1), At(seconds(6)));
  ASSERT_TRUE(gone.has_value() && gone->successor.has_value());
  EXPECT_EQ(gone->successor->peer, PeerId(2));
  EXPECT_EQ(gone->successor->worker, first.worker);
  EXPECT_EQ(gone->successor->incarnation, Incarnation(2));
  EXPECT_EQ(roster.FindStream(PeerId(2))->stage, Stage::kWaitingState);
  EXPECT_EQ(roster.FindWorker("a")->live, PeerId(2));
  EXPECT_FALSE(roster.FindWorker("a")->held.has_value());
  EXPECT_EQ(roster.PresentBeside(""), 1u);
}

TEST_F(RosterTest, AStreamWithoutAJoinIsClosedOnceItsTimeHasPassed) {
  Roster roster = Make({.join_timeout = seconds(10)});
  roster.Open(PeerId(1), Time{});
  roster.Open(PeerId(2), At(seconds(1)));
  EXPECT_THAT(roster.Fence(At(seconds(10))).close, IsEmpty());
  ASSERT_TRUE(roster.NextFence().has_value());
  const Roster::Due due = roster.Fence(*roster.NextFence());
  ASSERT_EQ(due.close.size(), 1u);
  EXPECT_EQ(due.close[0].first, PeerId(1));
  EXPECT_EQ(due.close[0].second.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(due.close[0].second.message()), HasSubstr("within 10 s"));
  EXPECT_FALSE(roster.Close(PeerId(1), At(seconds(11))).has_value());
}

TEST_F(RosterTest, TheOldestStrangerMakesRoomForTheNewest) {
  Roster roster = Make({.strangers_max = 2});
  EXPECT_THAT(roster.Open(PeerId(9), Time{}), IsEmpty());
  EXPECT_THAT(roster.Open(PeerId(5), At(seconds(1))), IsEmpty());
  const auto out = roster.Open(PeerId(7), At(seconds(2)));
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].first, PeerId(9));
  EXPECT_EQ(out[0].second.code(), absl::StatusCode::kUnavailable);
  (void)roster.Close(PeerId(9), At(seconds(2)));
  EXPECT_EQ(roster.CountIn(Stage::kConnected), 2u);
  // Those who have joined are no strangers.
  (void)roster.Join(PeerId(5), "a", At(seconds(2)));
  EXPECT_THAT(roster.Open(PeerId(8), At(seconds(3))), IsEmpty());
}

TEST_F(RosterTest, AClosedStreamThatDoesNotEndIsBrokenOffOnce) {
  Roster roster = Make({.close_timeout = seconds(2)});
  (void)Joined(roster, 1, "a");
  (void)roster.Close(PeerId(1), At(seconds(1)));
  EXPECT_THAT(roster.Fence(At(seconds(3))).cancel, IsEmpty());
  EXPECT_EQ(roster.NextFence(), At(seconds(3)) + Duration(1));
  EXPECT_THAT(roster.Fence(At(seconds(4))).cancel, ElementsAre(PeerId(1)));
  EXPECT_THAT(roster.Fence(At(seconds(9))).cancel, IsEmpty());
  EXPECT_FALSE(roster.NextFence().has_value());
  EXPECT_EQ(roster.streams(), 1u);
  roster.Forget(PeerId(1));
  EXPECT_EQ(roster.streams(), 0u);
  EXPECT_EQ(roster.FindStream(PeerId(1)), nullptr);
}

TEST_F(RosterTest, StreamsOfAStageAreInTheOrderOfTheirTimeThere) {
  Roster roster = Make();
  (void)Joined(roster, 3, "c", At(seconds(1)));
  (void)Joined(roster, 2, "b", At(seconds(2)));
  (void)Joined(roster, 1, "a", At(seconds(3)));
  EXPECT_THAT(roster.In(Stage::kWaitingState), ElementsAre(PeerId(3), PeerId(2), PeerId(1)));
  EXPECT_EQ(roster.LongestIn(Stage::kWaitingState), PeerId(3));
  EXPECT_FALSE(roster.LongestIn(Stage::kReady).has_value());
  roster.SetStage(PeerId(3), Stage::kUploading, At(seconds(4)));
  EXPECT_EQ(roster.LongestIn(Stage::kWaitingState), PeerId(2));
  EXPECT_EQ(roster.LongestIn(Stage::kUploading), PeerId(3));
  EXPECT_EQ(roster.FindStream(PeerId(3))->since, At(seconds(4)));
}

TEST_F(RosterTest, NamesBesideOneAreCountedWhileTheyAreHere) {
  Roster roster = Make();
  (void)Joined(roster, 1, "a");
  (void)Joined(roster, 2, "b");
  EXPECT_EQ(roster.PresentBeside("a"), 1u);
  EXPECT_EQ(roster.PresentBeside("c"), 2u);
  (void)roster.Close(PeerId(2), Time{});
  EXPECT_EQ(roster.PresentBeside("a"), 0u);
  EXPECT_EQ(roster.PresentBeside("b"), 1u);
}

TEST_F(RosterTest, TheNameThatHasBeenAwayForLongestMakesRoom) {
  Roster roster = Make({.names_max = 3});
  std::vector<Roster::Accepted> known;
  for (const char* name : {"a", "b", "c"}) {
    known.push_back(Joined(roster, known.size() + 1, name));
  }
  (void)roster.Close(PeerId(2), At(seconds(1)));
  (void)roster.Close(PeerId(1), At(seconds(2)));
  (void)Joined(roster, 4, "d", At(seconds(3)));
  EXPECT_EQ(roster.FindWorker("b"), nullptr);
  EXPECT_NE(roster.FindWorker("a"), nullptr);
  EXPECT_THAT(roster.TakeForgotten(), ElementsAre(known[1].worker));
  EXPECT_THAT(roster.TakeForgotten(), IsEmpty());
  // Nobody who is here is forgotten, whatever the bound.
  (void)Joined(roster, 5, "e", At(seconds(4)));
  (void)Joined(roster, 6, "f", At(seconds(5)));
  EXPECT_EQ(roster.FindWorker("a"), nullptr);
  EXPECT_EQ(roster.workers().size(), 4u);
  // A number is never given twice.
  EXPECT_EQ(roster.FindWorker("f")->id, WorkerId(5));
}

TEST_F(RosterTest, ASeatOrAnEvictionKeepsAName) {
  Roster roster = Make({.names_max = 2});
  const Roster::Accepted a = Joined(roster, 1, "a");
  (void)Joined(roster, 2, "b");
  (void)roster.Close(PeerId(1), At(seconds(1)));
  (void)roster.Close(PeerId(2), At(seconds(2)));
  roster.SetSeated({a.worker});
  (void)Joined(roster, 3, "c", At(seconds(3)));
  EXPECT_NE(roster.FindWorker("a"), nullptr);
  EXPECT_EQ(roster.FindWorker("b"), nullptr);
  roster.SetSeated({});
  ASSERT_TRUE(roster.Evict("a").ok());
  (void)Joined(roster, 4, "d", At(seconds(4)));
  EXPECT_NE(roster.FindWorker("a"), nullptr);
  EXPECT_TRUE(roster.FindWorker("a")->evicted);
  EXPECT_EQ(roster.Evict("nobody").code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(roster.Evict("a").ok());
}

TEST_F(RosterTest, ANameThatFetchesAgainAndAgainIsToldToStopWhateverStreamsItComesWith) {
  Roster roster = Make();
  WorkerId a, b;
  for (uint32_t i = 0; i < Roster::kResyncsMax; ++i) {
    a = Joined(roster, i + 1, "a", At(seconds(i))).worker;
    EXPECT_TRUE(roster.CountResync(a, At(seconds(i))).ok());
    (void)roster.Close(PeerId(i + 1), At(seconds(i)));
  }
  b = Joined(roster, 100, "b", At(seconds(100))).worker;
  (void)Joined(roster, 101, "a", At(seconds(100)));
  const absl::Status status = roster.CountResync(a, At(Roster::kResyncWindow));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--catch-up-bytes"));
  EXPECT_TRUE(roster.CountResync(b, At(Roster::kResyncWindow)).ok());
  EXPECT_TRUE(roster.CountResync(a, At(Roster::kResyncWindow + seconds(1))).ok());
}

TEST_F(RosterTest, WhatItRemembersMakesTheSameNamesAgain) {
  Roster roster = Make();
  (void)Joined(roster, 1, "a");
  (void)Joined(roster, 2, "b");
  (void)roster.Close(PeerId(1), Time{});
  (void)Joined(roster, 3, "a");
  ASSERT_TRUE(roster.Evict("b").ok());
  const Roster::Memory memory = roster.Remember();
  Roster again({}, memory, At(minutes(1)));
  EXPECT_EQ(again.Remember(), memory);
  EXPECT_TRUE(again.FindWorker("b")->evicted);
  EXPECT_EQ(again.PresentBeside(""), 0u);
  EXPECT_EQ(Joined(again, 1, "a").incarnation, Incarnation(3));
  EXPECT_EQ(Joined(again, 2, "c").worker, WorkerId(2));
}

TEST_F(RosterTest, WhomItRemembersIsAwaySinceThenAndMakesRoom) {
  Roster before = Make();
  const WorkerId a = Joined(before, 1, "a").worker;
  const WorkerId b = Joined(before, 2, "b").worker;
  Roster again({.names_max = 2}, before.Remember(), At(minutes(1)));
  EXPECT_EQ(again.FindWorker("a")->last_seen, At(minutes(1)));
  (void)Joined(again, 1, "b", At(minutes(2)));
  (void)Joined(again, 2, "c", At(minutes(3)));
  EXPECT_THAT(again.TakeForgotten(), ElementsAre(a));
  EXPECT_EQ(again.FindWorker("b")->id, b);
}

TEST_F(RosterTest, EveryStageHasAWordOfItsOwnForPeople) {
  std::vector<std::string> words;
  for (const Stage stage :
       {Stage::kConnected, Stage::kHeld, Stage::kWaitingState, Stage::kUploading, Stage::kFetching,
        Stage::kKeeping, Stage::kCatchingUp, Stage::kReady, Stage::kClosing}) {
    words.emplace_back(Words(stage));
  }
  EXPECT_THAT(words,
              ElementsAre("connected", "held", "waiting for the initial parameters", "uploading",
                          "fetching", "keeping its replica", "catching up", "ready", "closing"));
}

TEST_F(RosterTest, AnExhaustedSupplyOfNumbersRefusesNewNamesOnly) {
  Roster::Memory memory;
  memory.names.push_back({.id = WorkerId(7), .name = "a"});
  memory.next_worker_id = UINT32_MAX;
  Roster roster({}, memory, Time{});
  (void)Joined(roster, 1, "a");
  roster.Open(PeerId(2), Time{});
  const Roster::Answer answer = roster.Join(PeerId(2), "b", Time{});
  ASSERT_TRUE(std::holds_alternative<absl::Status>(answer));
  EXPECT_EQ(std::get<absl::Status>(answer).code(), absl::StatusCode::kResourceExhausted);
}

using RosterDeathTest = RosterTest;

TEST_F(RosterDeathTest, ATransitionThatTheTableDoesNotHaveEndsTheProcess) {
  Roster roster = Make();
  (void)Joined(roster, 1, "a");
  EXPECT_DEATH(roster.SetStage(PeerId(1), Stage::kReady, Time{}), "");
  EXPECT_DEATH(roster.SetStage(PeerId(2), Stage::kFetching, Time{}), "");
  EXPECT_DEATH(roster.Forget(PeerId(1)), "");
}

}  // namespace
}  // namespace signvote::run
