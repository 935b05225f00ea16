#include "server/run/history.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace signvote::run {
namespace {

Event Of(EventKind kind, const std::string& worker) {
  Event event;
  event.kind = kind;
  event.worker = worker;
  return event;
}
Event Joined(const std::string& worker) { return Of(EventKind::kJoined, worker); }

TEST(RunHistoryTest, EventsComeOnceInOrderToOneWhoSaysWhatItHas) {
  RunHistory history;
  EXPECT_TRUE(history.EventsAfter(0).empty());
  EXPECT_FALSE(history.has_rounds());
  for (const char* name : {"a", "b", "c"}) history.Add(Joined(name));
  const std::vector<Event> events = history.EventsAfter(1);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].worker, "b");
  EXPECT_EQ(events[1].sequence, 3u);
  EXPECT_TRUE(history.EventsAfter(3).empty());
}

TEST(RunHistoryTest, TheOldestEventsMakeRoomAndTheGapShows) {
  RunHistory history;
  for (size_t i = 0; i < RunHistory::kEventsKept + 10; ++i) history.Add(Joined("w"));
  const std::vector<Event> events = history.EventsAfter(0);
  ASSERT_EQ(events.size(), RunHistory::kEventsKept);
  EXPECT_EQ(events[0].sequence, 11u);
}

TEST(RunHistoryTest, WhatPeersMakeNeverPushesOutTheLastEventsOfTheRun) {
  RunHistory history;
  for (size_t i = 0; i < RunHistory::kEventsReserved + 5; ++i) {
    history.Add(Of(EventKind::kPaused, "p" + std::to_string(i)));
  }
  for (size_t i = 0; i < 10 * RunHistory::kEventsKept; ++i) {
    history.Add(Of(EventKind::kRefused, "stranger"));
  }
  const std::vector<Event> events = history.EventsAfter(0);
  ASSERT_EQ(events.size(), RunHistory::kEventsKept);
  size_t of_the_run = 0;
  for (const Event& event : events) of_the_run += event.kind == EventKind::kPaused ? 1 : 0;
  EXPECT_EQ(of_the_run, RunHistory::kEventsReserved);
  EXPECT_EQ(events[0].worker, "p5");
  // And the run's own events do not need the peers' places to come in.
  for (size_t i = 0; i < 2 * RunHistory::kEventsKept; ++i) {
    history.Add(Of(EventKind::kResumed, "r"));
  }
  for (const Event& event : history.EventsAfter(0)) EXPECT_EQ(event.kind, EventKind::kResumed);
}

TEST(RunHistoryTest, LongTextsAreCutAndWhatMisleadsIsTakenOut) {
  RunHistory history;
  Event event = Joined(std::string(100'000, 'x'));
  std::string umlauts = "x";
  while (umlauts.size() < 2 * RunHistory::kTextBytesMax) umlauts += "ä";
  event.reason = umlauts;
  const Event& added = history.Add(event);
  EXPECT_EQ(added.worker.size(), RunHistory::kTextBytesMax);
  EXPECT_EQ(added.reason, umlauts.substr(0, RunHistory::kTextBytesMax - 1));
  event.reason =
      "a\xC2\x9B"
      "b\xE2\x80\xAE"
      "c";
  EXPECT_EQ(history.Add(event).reason, "a b c");
}

TEST(RunHistoryTest, EachKindHasItsWord) {
  std::set<std::string_view> words;
  for (int kind = 1; kind <= 14; ++kind) words.insert(Words(static_cast<EventKind>(kind)));
  EXPECT_EQ(words.size(), 14u);
  EXPECT_EQ(Words(EventKind::kResync), "resync");
  EXPECT_EQ(Words(EventKind::kEnded), "ended");
}

// Goal: however long the run, at most kPointsMax points, each the mean of its rounds. Method: a
// loss that equals its round, so that the mean over a point's rounds is known.
TEST(RunHistoryTest, TheSeriesHalvesItsResolutionAndKeepsTheMeans) {
  RunHistory history;
  constexpr uint64_t kFirst = 7;
  for (uint64_t i = 0; i < 10 * RunHistory::kPointsMax + 3; ++i) {
    history.AddRound(kFirst + i, static_cast<double>(kFirst + i), 0.5);
    const RoundSeries series = history.Series();
    const auto points = series.loss.size();
    const uint64_t stride = series.rounds_per_point;
    ASSERT_EQ(series.first_round, kFirst);
    ASSERT_LE(points, RunHistory::kPointsMax);
    ASSERT_EQ(points, (i + stride) / stride) << "every round is in a point";
    ASSERT_EQ(series.stepsize.size(), series.loss.size());
    for (uint64_t p = 0; p < points; ++p) {
      const uint64_t begin = kFirst + p * stride, last = std::min(begin + stride - 1, kFirst + i);
      ASSERT_FLOAT_EQ(series.loss[p], static_cast<float>(begin + last) / 2);
      ASSERT_EQ(series.stepsize[p], 0.5f);
    }
  }
  EXPECT_EQ(history.Series().rounds_per_point, 16u);
}

TEST(RunHistoryTest, RoundsWithoutALossLeaveTheMeanAlone) {
  RunHistory history;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  history.AddRound(0, nan, 1);
  EXPECT_TRUE(std::isnan(history.Series().loss[0]));
  for (uint64_t i = 1; i <= RunHistory::kPointsMax; ++i) history.AddRound(i, i == 1 ? 3 : nan, 1);
  EXPECT_EQ(history.Series().loss[0], 3.0f);
  EXPECT_TRUE(std::isnan(history.Series().loss[1]));
}

TEST(RunHistoryTest, OfManyHeldOutLossesTheFirstAndTheLastStay) {
  RunHistory history;
  for (uint64_t round = 0; round < 10 * RunHistory::kHeldOutMax; ++round) {
    history.AddHeldOut({.loss = 1, .round = Round(round)});
    ASSERT_LE(history.held_out().size(), RunHistory::kHeldOutMax);
    ASSERT_EQ(history.held_out().front().round, Round(0));
    ASSERT_EQ(history.held_out().back().round, Round(round));
    for (size_t i = 1; i < history.held_out().size(); ++i) {
      ASSERT_LT(history.held_out()[i - 1].round, history.held_out()[i].round);
    }
  }
  EXPECT_GE(history.held_out().size(), RunHistory::kHeldOutMax / 2);
}

}  // namespace
}  // namespace signvote::run
