#include "worker/session/session_counters.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

TEST(SessionCountersTest, EachIsCountedForItself) {
  SessionCounters counters;
  counters.Welcomed(7);
  for (int i = 0; i < 2; ++i) counters.Reconnects();
  for (int i = 0; i < 3; ++i) counters.BallotSent();
  for (int i = 0; i < 4; ++i) counters.CommitReceived();
  for (int i = 0; i < 5; ++i) counters.VerdictMismatched();
  for (int i = 0; i < 6; ++i) counters.CommitApplied(std::chrono::milliseconds(250));
  counters.StateTransferred();
  const SessionStats stats = counters.Read(
      {.rounds = {.sent = 11, .received = 12}, .setup = {.sent = 13, .received = 14}}, true);
  EXPECT_EQ(stats.incarnation, 7u);
  EXPECT_EQ(stats.reconnects, 2u);
  EXPECT_EQ(stats.rounds_voted, 3u);
  EXPECT_EQ(stats.rounds_received, 4u);
  EXPECT_EQ(stats.verdict_mismatches, 5u);
  EXPECT_EQ(stats.rounds_applied, 6u);
  EXPECT_EQ(stats.state_transfers, 1u);
  EXPECT_EQ(stats.last_apply_seconds, 0.25);
  EXPECT_EQ(counters.last_apply(), std::chrono::milliseconds(250));
  EXPECT_EQ(stats.wire_sent_bytes, 11u);
  EXPECT_EQ(stats.wire_received_bytes, 12u);
  EXPECT_EQ(stats.setup_sent_bytes, 13u);
  EXPECT_EQ(stats.setup_received_bytes, 14u);
  EXPECT_TRUE(stats.connected);
}

TEST(SessionCountersTest, JoiningEndsWithTheFirstRoundThatOpens) {
  SessionCounters counters;
  EXPECT_EQ(counters.Read({}, false).join_seconds, 0.0);
  counters.RoundOpened(std::chrono::seconds(3));
  counters.RoundOpened(std::chrono::seconds(9));
  EXPECT_EQ(counters.Read({}, false).join_seconds, 3.0);
}

}  // namespace
}  // namespace signvote
