#include "server/rpc/history.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

namespace signvote::rpc {
namespace {

v1::Event Joined(const std::string& worker) {
  v1::Event event;
  event.set_kind(v1::Event::KIND_JOINED);
  event.set_worker(worker);
  return event;
}

v1::WatchReply Read(const RunHistory& history, uint64_t events_after = 0) {
  v1::WatchReply reply;
  history.Fill(events_after, &reply);
  return reply;
}

TEST(RunHistoryTest, EventsComeOnceInOrderToOneWhoSaysWhatItHas) {
  RunHistory history;
  EXPECT_EQ(Read(history).events_size(), 0);
  EXPECT_FALSE(Read(history).has_series());
  for (const char* name : {"a", "b", "c"}) history.Add(Joined(name));
  const v1::WatchReply reply = Read(history, 1);
  ASSERT_EQ(reply.events_size(), 2);
  EXPECT_EQ(reply.events(0).worker(), "b");
  EXPECT_EQ(reply.events(1).sequence(), 3u);
  EXPECT_EQ(Read(history, 3).events_size(), 0);
}

TEST(RunHistoryTest, TheOldestEventsMakeRoomAndTheGapShows) {
  RunHistory history;
  for (size_t i = 0; i < RunHistory::kEventsKept + 10; ++i) history.Add(Joined("w"));
  const v1::WatchReply reply = Read(history);
  ASSERT_EQ(static_cast<size_t>(reply.events_size()), RunHistory::kEventsKept);
  EXPECT_EQ(reply.events(0).sequence(), 11u);
}

TEST(RunHistoryTest, LongTextsAreCutBetweenCodePoints) {
  RunHistory history;
  v1::Event event = Joined(std::string(100'000, 'x'));
  std::string umlauts = "x";
  while (umlauts.size() < 2 * RunHistory::kTextBytesMax) umlauts += "ä";
  event.set_reason(umlauts);
  history.Add(event);
  const v1::WatchReply reply = Read(history);
  EXPECT_EQ(reply.events(0).worker().size(), RunHistory::kTextBytesMax);
  EXPECT_EQ(reply.events(0).reason(), umlauts.substr(0, RunHistory::kTextBytesMax - 1));
}

// Goal: however long the run, at most kPointsMax points, each the mean of its rounds. Method: a
// loss that equals its round, so that the mean over a point's rounds is known.
TEST(RunHistoryTest, TheSeriesHalvesItsResolutionAndKeepsTheMeans) {
  RunHistory history;
  constexpr uint64_t kFirst = 7;
  for (uint64_t i = 0; i < 10 * RunHistory::kPointsMax + 3; ++i) {
    history.AddRound(kFirst + i, static_cast<double>(kFirst + i), 0.5);
    const v1::RoundSeries series = Read(history).series();
    const auto points = static_cast<uint64_t>(series.loss_size());
    const uint64_t stride = series.rounds_per_point();
    ASSERT_EQ(series.first_round(), kFirst);
    ASSERT_LE(points, RunHistory::kPointsMax);
    ASSERT_EQ(points, (i + stride) / stride) << "every round is in a point";
    ASSERT_EQ(series.stepsize_size(), series.loss_size());
    for (uint64_t p = 0; p < points; ++p) {
      const uint64_t begin = kFirst + p * stride, last = std::min(begin + stride - 1, kFirst + i);
      ASSERT_FLOAT_EQ(series.loss(static_cast<int>(p)), static_cast<float>(begin + last) / 2);
      ASSERT_EQ(series.stepsize(static_cast<int>(p)), 0.5f);
    }
  }
  EXPECT_EQ(Read(history).series().rounds_per_point(), 16u);
}

TEST(RunHistoryTest, RoundsWithoutALossLeaveTheMeanAlone) {
  RunHistory history;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  history.AddRound(0, nan, 1);
  EXPECT_TRUE(std::isnan(Read(history).series().loss(0)));
  for (uint64_t i = 1; i <= RunHistory::kPointsMax; ++i) history.AddRound(i, i == 1 ? 3 : nan, 1);
  EXPECT_EQ(Read(history).series().loss(0), 3.0f);
  EXPECT_TRUE(std::isnan(Read(history).series().loss(1)));
}

TEST(RunHistoryTest, EveryKindHasAWord) {
  EXPECT_EQ(EventWord(v1::Event::KIND_JOINED), "joined");
  const auto* descriptor = v1::Event::Kind_descriptor();
  for (int i = 1; i < descriptor->value_count(); ++i) {
    EXPECT_NE(EventWord(static_cast<v1::Event::Kind>(descriptor->value(i)->number())),
              "unspecified");
  }
}

}  // namespace
}  // namespace signvote::rpc
