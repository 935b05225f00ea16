#include "worker/train/metrics.h"

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

WorkerRound VotedRound() {
  return {.round = Round(6),
          .voted = true,
          .overlapped = true,
          .targets = 1024,
          .members = 3,
          .voters = 2,
          .main_round = 5,
          .loss = 2.5,
          .run_loss = 2.25,
          .stepsize = 0.5,
          .g_l1 = 30,
          .g_l2_squared = 9,
          .first_chunk_seconds = 0.1,
          .backward_end_seconds = 0.2,
          .compute_seconds = 0.25};
}

RunInfo RunOf100Coordinates() {
  RunInfo run;
  run.layout = *Layout::Make({{.name = "w", .shape = {100}}});
  return run;
}

std::set<std::string> RegisteredNames() {
  std::set<std::string> names;
#define SIGNVOTE_X(id, kind, name, help) names.insert(name);
  SIGNVOTE_WORKER_METRICS(SIGNVOTE_X)
#undef SIGNVOTE_X
  return names;
}

TEST(WorkerMetricsTest, EveryMetricIsOnTheMetricsPageAndNoOther) {
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

TEST(WorkerMetricsTest, CountersEndInTotalAndGaugesDoNot) {
#define SIGNVOTE_X(id, kind, name, help)                                                      \
  EXPECT_EQ(std::string(#kind) == "kCounter", std::string(name).ends_with("_total")) << name; \
  EXPECT_TRUE(std::string(help).ends_with(".")) << name;
  SIGNVOTE_WORKER_METRICS(SIGNVOTE_X)
#undef SIGNVOTE_X
}

TEST(WorkerMetricsTest, RoundsAddUpAndGaugesFollowTheLastOne) {
  WorkerMetrics metrics;
  EXPECT_FALSE(metrics.joined());
  RunInfo run = RunOf100Coordinates();
  run.main_rounds = 300;
  metrics.OnJoined(run);
  EXPECT_TRUE(metrics.joined());
  EXPECT_EQ(metrics.value(WorkerMetric::kMainRounds), 300);
  EXPECT_EQ(metrics.value(WorkerMetric::kRunDone), 0);
  WorkerRound voted = VotedRound();
  voted.held_out = {
      .round = Round(4), .loss = 5.5, .error = 0.25, .perplexity = 245, .windows = 0xab};
  voted.embedding_norm = 12.5;
  metrics.OnRound(voted);
  EXPECT_EQ(metrics.value(WorkerMetric::kMainRound), 5);
  metrics.OnRound({.round = Round(7),
                   .main_round = 6,
                   .run_done = true,
                   .loss = std::numeric_limits<double>::infinity(),
                   .compute_seconds = 0.5});
  EXPECT_EQ(metrics.value(WorkerMetric::kMainRound), 6);
  EXPECT_EQ(metrics.value(WorkerMetric::kRunDone), 1);
  EXPECT_EQ(metrics.value(WorkerMetric::kRoundsVoted), 1);
  EXPECT_EQ(metrics.value(WorkerMetric::kRoundsAbstained), 1);
  EXPECT_EQ(metrics.value(WorkerMetric::kRoundsOverlapped), 1);
  EXPECT_EQ(metrics.value(WorkerMetric::kTargets), 1024);
  EXPECT_EQ(metrics.value(WorkerMetric::kComputeSeconds), 0.75);
  EXPECT_EQ(metrics.value(WorkerMetric::kRound), 8);
  EXPECT_EQ(metrics.value(WorkerMetric::kHeldOutLoss), 5.5);
  EXPECT_EQ(metrics.value(WorkerMetric::kHeldOutError), 0.25);
  EXPECT_EQ(metrics.value(WorkerMetric::kHeldOutPerplexity), 245);
  EXPECT_EQ(metrics.value(WorkerMetric::kHeldOutRound), 4);
  EXPECT_EQ(metrics.value(WorkerMetric::kEmbeddingNorm), 12.5);
  EXPECT_EQ(metrics.value(WorkerMetric::kDensity),
            30.0 * 30 / (100 * 9));  // of the last gradient that was sent
  SessionStats stats;
  stats.rounds_voted = 1;
  stats.rounds_received = 2;
  stats.rounds_applied = 50;  // most of them while catching up, whose bytes are not the rounds'
  stats.wire_sent_bytes = 13;
  metrics.OnSession(stats);
  EXPECT_EQ(metrics.value(WorkerMetric::kFp32Bytes), 3 * 4 * 100);
  EXPECT_EQ(metrics.value(WorkerMetric::kSentBytes), 13);
}

TEST(WorkerMetricsTest, HeldOutLossesOfOtherWindowsAreAnotherSeries) {
  WorkerMetrics metrics;
  WorkerRound round = VotedRound();
  for (const uint64_t windows : {0xabu, 0xcdu}) {
    round.held_out = {.loss = 5.5, .windows = windows};
    metrics.OnRound(round);
  }
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("signvote_worker_held_out_loss{windows=\"00000000000000cd\"} 5.5\n"));
  EXPECT_THAT(text,
              HasSubstr("signvote_worker_held_out_perplexity{windows=\"00000000000000cd\"} Nan"));
  EXPECT_THAT(text, testing::Not(HasSubstr("00000000000000ab")));
}

TEST(WorkerMetricsTest, TheTextIsWhatPromtoolAccepts) {
  WorkerMetrics metrics;
  metrics.OnJoined(RunOf100Coordinates());
  metrics.OnRound(VotedRound());
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("# TYPE signvote_worker_rounds_voted_total counter\n"
                              "signvote_worker_rounds_voted_total 1\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE signvote_worker_loss gauge\nsignvote_worker_loss 2.5\n"));
  EXPECT_THAT(text, HasSubstr("signvote_worker_held_out_loss Nan\n"));  // not measured yet
  EXPECT_THAT(text, HasSubstr("signvote_worker_main_rounds Nan\n"));    // not known
  if (std::system("command -v promtool > /dev/null") != 0)
    GTEST_SKIP() << "promtool is not installed";
  std::FILE* promtool = ::popen("promtool check metrics 2>&1 > /dev/null", "w");
  ASSERT_NE(promtool, nullptr);
  std::fwrite(text.data(), 1, text.size(), promtool);
  EXPECT_EQ(::pclose(promtool), 0);
}

}  // namespace
}  // namespace signvote
