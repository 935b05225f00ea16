#include "ctl/top_model.h"

#include <gtest/gtest.h>

#include <cmath>

namespace signvote::ctl {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

v1::WatchReply Reply(uint64_t round, uint64_t up, const std::string& run_id = "r") {
  v1::WatchReply reply;
  v1::Status& status = *reply.mutable_status();
  status.set_run_id(run_id);
  status.set_phase(v1::Status::PHASE_ROUND_OPEN);
  status.set_round(round);
  status.mutable_wire()->set_up_rounds_bytes(up);
  status.mutable_wire()->set_down_rounds_bytes(2 * up);
  v1::Worker& worker = *status.add_workers();
  worker.set_name("w");
  worker.mutable_wire()->set_up_rounds_bytes(up / 2);
  worker.mutable_wire()->set_down_rounds_bytes(up);
  return reply;
}

void AddEvent(uint64_t sequence, v1::WatchReply* reply, const std::string& worker = "w") {
  v1::Event& event = *reply->add_events();
  event.set_sequence(sequence);
  event.set_kind(v1::Event::KIND_JOINED);
  event.set_worker(worker);
}

Time At(Duration d) { return Time{} + d; }

TEST(TopModelTest, NothingIsKnownBeforeTheFirstAnswer) {
  const TopModel model;
  EXPECT_FALSE(model.has_status());
  EXPECT_FALSE(model.ended());
  EXPECT_TRUE(std::isnan(model.rounds_per_second()));
  EXPECT_TRUE(std::isnan(model.Rate().up));
  EXPECT_TRUE(std::isnan(model.RateOf("w").up));
}

TEST(TopModelTest, RatesAreThoseOfTheLastSeconds) {
  TopModel model;
  model.OnReply(Reply(0, 0), At(seconds(0)));
  EXPECT_TRUE(std::isnan(model.Rate().up)) << "one answer tells no rate";
  for (uint64_t s = 1; s <= 10; ++s) model.OnReply(Reply(10 * s, 1000 * s), At(seconds(s)));
  EXPECT_DOUBLE_EQ(model.rounds_per_second(), 10);
  EXPECT_DOUBLE_EQ(model.Rate().up, 1000);
  EXPECT_DOUBLE_EQ(model.Rate().down, 2000);
  EXPECT_DOUBLE_EQ(model.RateOf("w").up, 500);
  EXPECT_TRUE(std::isnan(model.RateOf("nobody").up));
  // The run stands still: after the window it shows.
  for (int s = 11; s <= 16; ++s) model.OnReply(Reply(100, 10'000), At(seconds(s)));
  EXPECT_DOUBLE_EQ(model.rounds_per_second(), 0);
  EXPECT_DOUBLE_EQ(model.Rate().up, 0);
}

TEST(TopModelTest, CountersThatFallAreNotARate) {
  TopModel model;
  model.OnReply(Reply(10, 1000), At(seconds(0)));
  model.OnReply(Reply(11, 10), At(seconds(1)));
  EXPECT_TRUE(std::isnan(model.Rate().up));
  EXPECT_TRUE(std::isnan(model.RateOf("w").up));
}

TEST(TopModelTest, MemoryIsBoundedHoweverOftenAnswersCome) {
  TopModel model;
  uint64_t sequence = 0;
  for (int i = 0; i < 3000; ++i) {
    v1::WatchReply reply = Reply(static_cast<uint64_t>(i), static_cast<uint64_t>(i));
    AddEvent(++sequence, &reply);
    model.OnReply(std::move(reply), At(milliseconds(i)));
  }
  EXPECT_EQ(model.events().size(), TopModel::kEventsKept);
  EXPECT_EQ(model.events().back().sequence(), sequence);
  EXPECT_NEAR(model.rounds_per_second(), 1000, 1);
}

TEST(TopModelTest, AnEventIsTakenOnce) {
  TopModel model;
  v1::WatchReply reply = Reply(1, 1);
  AddEvent(1, &reply);
  AddEvent(2, &reply);
  model.OnReply(reply, At(seconds(1)));
  EXPECT_EQ(model.since_last_reply(), 2u);
  AddEvent(3, &reply);
  model.OnReply(reply, At(seconds(2)));
  EXPECT_EQ(model.since_last_reply(), 1u);
  EXPECT_EQ(model.events().size(), 3u);
}

TEST(TopModelTest, AnotherRunBeginsAnew) {
  TopModel model;
  v1::WatchReply first = Reply(100, 100'000);
  AddEvent(7, &first);
  model.OnReply(first, At(seconds(1)));
  EXPECT_FALSE(model.new_run()) << "the first run is not another one";
  model.OnLost("gone", At(seconds(2)));
  ASSERT_TRUE(model.lost().has_value());
  EXPECT_EQ(model.lost()->since, At(seconds(1))) << "since the last answer";
  v1::WatchReply second = Reply(1, 10, "other");
  AddEvent(1, &second);
  model.OnReply(second, At(seconds(3)));
  EXPECT_TRUE(model.new_run());
  EXPECT_FALSE(model.lost().has_value());
  ASSERT_EQ(model.events().size(), 1u);
  EXPECT_EQ(model.events()[0].sequence(), 1u);
  EXPECT_TRUE(std::isnan(model.rounds_per_second()));
  model.OnReply(Reply(2, 20, "other"), At(seconds(4)));
  EXPECT_FALSE(model.new_run());
}

TEST(TopModelTest, ALostServerHasEndedOnlyIfItWasAboutTo) {
  TopModel model;
  model.OnReply(Reply(1, 1), At(seconds(1)));
  model.OnLost("gone", At(seconds(2)));
  EXPECT_FALSE(model.ended());
  v1::WatchReply reply = Reply(3, 3);
  reply.mutable_status()->set_phase(v1::Status::PHASE_FINISHING);
  model.OnReply(reply, At(seconds(3)));
  EXPECT_FALSE(model.ended()) << "its workers say good-bye";
  model.OnLost("gone", At(seconds(4)));
  EXPECT_TRUE(model.ended());
  reply.mutable_status()->set_phase(v1::Status::PHASE_ENDED);
  model.OnReply(reply, At(seconds(5)));
  EXPECT_TRUE(model.ended());
}

TEST(TopModelTest, NoTerminalSequenceGetsThrough) {
  EXPECT_EQ(Printable("a\x1b[2Jb\n\x7f\tä\xff"), "a?[2Jb?????");
  TopModel model;
  v1::WatchReply reply = Reply(1, 1);
  reply.mutable_status()->mutable_workers(0)->set_name("\x1b]0;x\x07");
  reply.mutable_status()->mutable_workers(0)->set_address("\r\n");
  AddEvent(1, &reply, "\x1b[31mred");
  reply.mutable_events(0)->set_reason("line\nfeed");
  model.OnReply(reply, At(seconds(1)));
  model.OnLost(
      "a\x1b"
      "b",
      At(seconds(2)));
  EXPECT_EQ(model.status().workers(0).name(), "?]0;x?");
  EXPECT_EQ(model.status().workers(0).address(), "??");
  EXPECT_EQ(model.events()[0].worker(), "?[31mred");
  EXPECT_EQ(model.events()[0].reason(), "line?feed");
  EXPECT_EQ(model.lost()->why, "a?b");
}

}  // namespace
}  // namespace signvote::ctl
