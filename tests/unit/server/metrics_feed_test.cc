#include "server/metrics_feed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/clock.h"

namespace signvote {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricsFeedTest, ASnapshotBecomesGaugesCountersAndWorkerSeries) {
  ServerMetrics metrics(Clock::System());
  MetricsFeed feed(&metrics);
  run::StatusPage page;
  page.coordinates = 1000;
  page.round = Round(7);
  page.loss = 2.5;
  page.losses = 3;
  page.wire.up_rounds_bytes = 4096;
  page.refusals = 2;
  page.log_lines_dropped = 5;
  page.health.ready = true;
  page.rho = 1.25;
  page.rule_numbers = {{"s", 7}, {"z", -0.5}};
  page.race = {.trials = 3, .rounds = 45, .rounds_max = 75};
  page.minibatches = 112;
  page.wire.minibatches = 336;
  page.up_bits = 0.0625;
  page.workers_min = 2;
  page.health.last_commit_unix_seconds = 1.7e9;
  page.phase = run::PagePhase::kPaused;
  for (const char* name : {"a", "b"}) {
    run::WorkerPage& worker = page.workers.emplace_back();
    worker.name = name;
    worker.connected = true;
    worker.member = *name == 'a';
    worker.agreement = 0.75;
    worker.arrival_seconds = 0.5;
  }
  feed.Update(page);
  EXPECT_EQ(metrics.Value(ServerMetric::kCoordinates), 1000);
  EXPECT_EQ(metrics.Value(ServerMetric::kRound), 7);
  EXPECT_EQ(metrics.Value(ServerMetric::kMinibatches), 112);
  EXPECT_EQ(metrics.Value(ServerMetric::kWorkerMinibatches), 336);
  EXPECT_EQ(metrics.Value(ServerMetric::kUpParameterBytes), 0.0625 / 8);
  EXPECT_EQ(metrics.Value(ServerMetric::kDownParameterBytes), 0);  // unknown: left as it was
  EXPECT_EQ(metrics.Value(ServerMetric::kLoss), 2.5);
  EXPECT_EQ(metrics.Value(ServerMetric::kGradientL1), 0);  // unknown: left as it was
  EXPECT_EQ(metrics.Value(ServerMetric::kLosses), 3);
  EXPECT_EQ(metrics.Value(ServerMetric::kUpRoundsBytes), 4096);
  EXPECT_EQ(metrics.Value(ServerMetric::kRefusals), 2);
  EXPECT_EQ(metrics.Value(ServerMetric::kLogLinesDropped), 5);
  EXPECT_EQ(metrics.Value(ServerMetric::kMembers), 1);
  EXPECT_EQ(metrics.Value(ServerMetric::kObservers), 1);
  EXPECT_EQ(metrics.Value(ServerMetric::kReady), 1);
  EXPECT_EQ(metrics.Value(ServerMetric::kWorkersMin), 2);
  EXPECT_EQ(metrics.Value(ServerMetric::kLastCommit), 1.7e9);
  EXPECT_EQ(metrics.Value(ServerMetric::kRescaling), 1.25);
  EXPECT_EQ(metrics.Value(ServerMetric::kLean), -0.5);
  EXPECT_EQ(metrics.Value(ServerMetric::kRaceTrials), 3);
  EXPECT_EQ(metrics.Value(ServerMetric::kRaceRounds), 45);
  EXPECT_EQ(metrics.Value(ServerMetric::kRaceRoundsLeft), 30);
  EXPECT_EQ(metrics.Value(ServerMetric::kPaused), 1);
  EXPECT_THAT(metrics.Text(),
              HasSubstr("signvote_server_worker_agreement_ratio{worker=\"b\"} 0.75"));

  page.workers[1].connected = false;
  page.phase = run::PagePhase::kRoundOpen;
  page.race.over = true;
  page.rule_numbers = {{"s", 7}};
  feed.Update(page);
  EXPECT_EQ(metrics.Value(ServerMetric::kRaceRoundsLeft), 0);
  EXPECT_TRUE(std::isnan(metrics.Value(ServerMetric::kLean))) << "this round measures none";
  EXPECT_EQ(metrics.Value(ServerMetric::kObservers), 0);
  EXPECT_EQ(metrics.Value(ServerMetric::kPaused), 0);
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("worker=\"b\"")));
  EXPECT_THAT(metrics.Text(), HasSubstr("worker=\"a\""));
}

TEST(MetricsFeedTest, HeldOutLossesOfOtherWindowsAreAnotherSeries) {
  ServerMetrics metrics(Clock::System());
  MetricsFeed feed(&metrics);
  run::StatusPage page;
  feed.Update(page);
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("signvote_server_held_out_loss{")));
  page.held_out = run::HeldOut{.loss = 2.5, .error = 0.5, .round = Round(7), .windows = 0xab};
  feed.Update(page);
  EXPECT_THAT(metrics.Text(),
              AllOf(HasSubstr("signvote_server_held_out_loss{windows=\"00000000000000ab\"} 2.5"),
                    HasSubstr("signvote_server_held_out_error{windows=\"00000000000000ab\"} 0.5"),
                    HasSubstr("signvote_server_held_out_round{windows=\"00000000000000ab\"} 7")));
  page.held_out->loss = 2;
  feed.Update(page);
  EXPECT_THAT(metrics.Text(),
              HasSubstr("signvote_server_held_out_loss{windows=\"00000000000000ab\"} 2\n"));
  page.held_out->windows = 0xcd;
  feed.Update(page);
  EXPECT_THAT(metrics.Text(),
              AllOf(HasSubstr("signvote_server_held_out_loss{windows=\"00000000000000cd\"} 2\n"),
                    Not(HasSubstr("00000000000000ab"))));
}

TEST(MetricsFeedTest, CommitsFillTheHistograms) {
  ServerMetrics metrics(Clock::System());
  MetricsFeed feed(&metrics);
  feed.OnCommit({.round = 0.5, .wait = 0.1, .tally = 0.01, .commit = 0.001});
  feed.OnCommit({.round = 0.5, .has_voter_times = true, .compute = 0.4, .worker_apply = 0.01});
  feed.OnApplied(0.002);
  EXPECT_EQ(metrics.Value(ServerMetric::kRounds), 2);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("signvote_server_round_seconds_count 2"));
  EXPECT_THAT(text, HasSubstr("signvote_server_compute_seconds_count 1"));
  EXPECT_THAT(text, HasSubstr("signvote_server_apply_seconds_count 1"));
}

}  // namespace
}  // namespace signvote
