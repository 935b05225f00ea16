#include "worker/train/probe.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace signvote {
namespace {

using testing::HasSubstr;

RoundReport VotedRound() {
  RoundReport round;
  round.round = Round(6);
  round.members = 3;
  round.voters = 2;
  round.scalars = {.loss = 2.5, .g_l1 = 30, .g_l2_squared = 9};
  round.targets = 1024;
  round.stepsize = 0.5f;
  round.run_loss = 2.25;
  round.compute_took_seconds = 0.25;
  round.first_chunk_seconds = 0.1;
  round.backward_end_seconds = 0.2;
  round.first_chunk_overlapped = true;
  return round;
}

std::set<std::string> RegisteredNames() {
  std::set<std::string> names;
#define SIGNVOTE_X(id, kind, name, help) names.insert(name);
  SIGNVOTE_WORKER_METRICS(SIGNVOTE_X)
#undef SIGNVOTE_X
  return names;
}

TEST(WorkerProbeTest, EveryMetricIsOnTheMetricsPageAndNoOther) {
  std::ifstream page(SIGNVOTE_SOURCE_DIR "/docs/metrics.md");
  ASSERT_TRUE(page.good());
  std::stringstream text;
  text << page.rdbuf();
  const std::string page_text = text.str();
  std::set<std::string> documented;
  const std::string prefix = "signvote_worker_";
  for (size_t at = 0; (at = page_text.find(prefix, at)) != std::string::npos;) {
    const size_t end = page_text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_", at);
    documented.insert(page_text.substr(at, end - at));
    at = end;
  }
  EXPECT_EQ(documented, RegisteredNames());
  EXPECT_EQ(RegisteredNames().size(), kWorkerMetrics);  // no name twice
}

TEST(WorkerProbeTest, CountersEndInTotalAndGaugesDoNot) {
#define SIGNVOTE_X(id, kind, name, help)                                                      \
  EXPECT_EQ(std::string(#kind) == "kCounter", std::string(name).ends_with("_total")) << name; \
  EXPECT_TRUE(std::string(help).ends_with(".")) << name;
  SIGNVOTE_WORKER_METRICS(SIGNVOTE_X)
#undef SIGNVOTE_X
}

TEST(WorkerProbeTest, RoundsAddUpAndGaugesFollowTheLastOne) {
  WorkerProbe probe;
  EXPECT_FALSE(probe.joined());
  RunInfo run;
  run.rounds_max = 300;
  probe.OnJoined(run, 100);
  EXPECT_TRUE(probe.joined());
  RoundReport voted = VotedRound();
  voted.held_out = {.round = Round(4), .loss = 5.5};
  probe.OnRound(voted);
  RoundReport abstained;
  abstained.round = Round(7);
  abstained.abstained = AbstainReason::kNonFiniteLoss;
  abstained.scalars.loss = std::numeric_limits<double>::infinity();
  abstained.compute_took_seconds = 0.5;
  probe.OnRound(abstained);
  EXPECT_EQ(probe.value(WorkerMetric::kRoundsVoted), 1);
  EXPECT_EQ(probe.value(WorkerMetric::kRoundsAbstained), 1);
  EXPECT_EQ(probe.value(WorkerMetric::kRoundsOverlapped), 1);
  EXPECT_EQ(probe.value(WorkerMetric::kTargets), 1024);
  EXPECT_EQ(probe.value(WorkerMetric::kComputeSeconds), 0.75);
  EXPECT_EQ(probe.value(WorkerMetric::kRound), 8);
  EXPECT_EQ(probe.value(WorkerMetric::kHeldOutLoss), 5.5);
  EXPECT_EQ(probe.value(WorkerMetric::kDensity),
            30.0 * 30 / (100 * 9));  // of the last gradient that was sent
  SessionStats stats;
  stats.rounds_voted = 1;
  stats.rounds_received = 2;
  stats.rounds_applied = 50;  // most of them while catching up, whose bytes are not the rounds'
  stats.wire_sent_bytes = 13;
  probe.OnSession(stats);
  EXPECT_EQ(probe.value(WorkerMetric::kFp32Bytes), 3 * 4 * 100);
  EXPECT_EQ(probe.value(WorkerMetric::kSentBytes), 13);
}

TEST(WorkerProbeTest, TheTextIsWhatPromtoolAccepts) {
  WorkerProbe probe;
  probe.OnJoined(RunInfo{}, 100);
  probe.OnRound(VotedRound());
  const std::string text = probe.Text();
  EXPECT_THAT(text, HasSubstr("# TYPE signvote_worker_rounds_voted_total counter\n"
                              "signvote_worker_rounds_voted_total 1\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE signvote_worker_loss gauge\nsignvote_worker_loss 2.5\n"));
  EXPECT_THAT(text, HasSubstr("signvote_worker_held_out_loss Nan\n"));  // not measured yet
  if (std::system("command -v promtool > /dev/null") != 0)
    GTEST_SKIP() << "promtool is not installed";
  std::FILE* promtool = ::popen("promtool check metrics 2>&1 > /dev/null", "w");
  ASSERT_NE(promtool, nullptr);
  std::fwrite(text.data(), 1, text.size(), promtool);
  EXPECT_EQ(::pclose(promtool), 0);
}

}  // namespace
}  // namespace signvote
