#include "server/metrics_feed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/clock.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricsFeedTest, ASnapshotBecomesGaugesCountersAndWorkerSeries) {
  ServerMetrics metrics(Clock::System());
  MetricsFeed feed(&metrics);
  rpc::ServerSnapshot snapshot;
  v1::Status& status = snapshot.status;
  status.set_coordinates(1000);
  status.set_round(7);
  status.set_loss(2.5);
  status.set_g_l1(std::nan(""));
  status.set_losses(3);
  status.mutable_wire()->set_up_rounds_bytes(4096);
  snapshot.refusals = 2;
  snapshot.ready = true;
  snapshot.workers_min = 2;
  snapshot.last_commit_unix_seconds = 1.7e9;
  status.set_phase(v1::Status::PHASE_PAUSED);
  for (const char* name : {"a", "b"}) {
    v1::Worker& worker = *status.add_workers();
    worker.set_name(name);
    worker.set_connected(true);
    worker.set_role(*name == 'a' ? v1::Worker::ROLE_MEMBER : v1::Worker::ROLE_OBSERVER);
    worker.set_agreement(0.75);
    worker.set_loss(std::nan(""));
    worker.set_arrival_seconds(0.5);
  }
  feed.Update(snapshot);
  EXPECT_EQ(metrics.Value(ServerMetric::kCoordinates), 1000);
  EXPECT_EQ(metrics.Value(ServerMetric::kRound), 7);
  EXPECT_EQ(metrics.Value(ServerMetric::kLoss), 2.5);
  EXPECT_EQ(metrics.Value(ServerMetric::kGradientL1), 0);  // unknown: left as it was
  EXPECT_EQ(metrics.Value(ServerMetric::kLosses), 3);
  EXPECT_EQ(metrics.Value(ServerMetric::kUpRoundsBytes), 4096);
  EXPECT_EQ(metrics.Value(ServerMetric::kRefusals), 2);
  EXPECT_EQ(metrics.Value(ServerMetric::kMembers), 1);
  EXPECT_EQ(metrics.Value(ServerMetric::kObservers), 1);
  EXPECT_EQ(metrics.Value(ServerMetric::kReady), 1);
  EXPECT_EQ(metrics.Value(ServerMetric::kWorkersMin), 2);
  EXPECT_EQ(metrics.Value(ServerMetric::kLastCommit), 1.7e9);
  EXPECT_EQ(metrics.Value(ServerMetric::kPaused), 1);
  EXPECT_THAT(metrics.Text(),
              HasSubstr("signvote_server_worker_agreement_ratio{worker=\"b\"} 0.75"));

  status.mutable_workers(1)->set_connected(false);
  status.set_phase(v1::Status::PHASE_ROUND_OPEN);
  feed.Update(snapshot);
  EXPECT_EQ(metrics.Value(ServerMetric::kObservers), 0);
  EXPECT_EQ(metrics.Value(ServerMetric::kPaused), 0);
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("worker=\"b\"")));
  EXPECT_THAT(metrics.Text(), HasSubstr("worker=\"a\""));
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
