#include "server/http/server_metrics.h"

#include <gtest/gtest.h>

#include <regex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/file_system.h"

namespace signvote {
namespace {

std::string MetricsPage() {
  auto page =
      FileSystem::Posix()->ReadFile(std::string(SIGNVOTE_SOURCE_DIR) + "/docs/metrics.md", 1 << 20);
  EXPECT_TRUE(page.ok()) << page.status();
  return page.ok() ? *page : "";
}

TEST(ServerMetricsTest, ThePageNamesEveryMetricWithItsType) {
  const std::string page = MetricsPage();
  for (const auto& [name, kind] : ServerMetricNames()) {
    const char* type = kind == MetricKind::kCounter || kind == MetricKind::kProcessCounter
                           ? "counter"
                       : kind == MetricKind::kHistogram ? "histogram"
                                                        : "gauge";
    EXPECT_NE(page.find("| `" + name + "` | " + type + " |"), std::string::npos)
        << name << " " << type;
  }
}

TEST(ServerMetricsTest, ThePageNamesNoServerMetricThatDoesNotExist) {
  std::set<std::string> known;
  for (const auto& [name, kind] : ServerMetricNames()) known.insert(name);
  const std::string page = MetricsPage();
  const std::regex pattern("signvote_server_[a-z0-9_]+");
  size_t seen = 0;
  for (std::sregex_iterator it(page.begin(), page.end(), pattern), end; it != end; ++it, ++seen) {
    EXPECT_TRUE(known.contains(it->str())) << it->str();
  }
  EXPECT_GT(seen, 20u);
}

TEST(ServerMetricsTest, CountersEndInTotalAndOnlyTheyDo) {
  for (const auto& [name, kind] : ServerMetricNames()) {
    const bool counter = kind == MetricKind::kCounter || kind == MetricKind::kProcessCounter;
    EXPECT_EQ(name.ends_with("_total"), counter) << name;
  }
}

TEST(ServerMetricsTest, ATotalRaisedByManyAtOnceIsThatTotal) {
  ServerMetrics metrics(Clock::System());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&metrics] {
      for (int total = 1; total <= 20'000; ++total)
        metrics.RaiseTo(ServerMetric::kUpRoundsBytes, total);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(metrics.Value(ServerMetric::kUpRoundsBytes), 20'000);
}

TEST(ServerMetricsTest, TextHoldsWhatWasSet) {
  ServerMetrics metrics(Clock::System());
  metrics.Set(ServerMetric::kLoss, 2.5);
  metrics.Add(ServerMetric::kRounds, 3);
  metrics.RaiseTo(ServerMetric::kUpRoundsBytes, 1000);
  metrics.RaiseTo(ServerMetric::kUpRoundsBytes, 900);  // a total never falls
  metrics.Observe(ServerMetric::kRoundSeconds, 0.2);
  metrics.SetInfo("1.2.3", "alias", "signum");
  const std::string text = metrics.Text();
  EXPECT_NE(text.find("signvote_server_loss 2.5"), std::string::npos) << text;
  EXPECT_NE(text.find("signvote_server_rounds_total 3"), std::string::npos);
  EXPECT_NE(text.find("signvote_server_wire_up_bytes_total 1000"), std::string::npos);
  EXPECT_NE(text.find("signvote_server_round_seconds_count 1"), std::string::npos);
  EXPECT_NE(text.find("version=\"1.2.3\""), std::string::npos);
  EXPECT_GT(metrics.Value(ServerMetric::kProcessResident), 1e6);
}

TEST(ServerMetricsTest, AForgottenWorkerLeavesNoSeries) {
  ServerMetrics metrics(Clock::System());
  metrics.SetWorker(ServerMetric::kWorkerLoss, "w0", 1);
  metrics.SetWorker(ServerMetric::kWorkerAgreement, "w0", 0.5);
  metrics.SetWorker(ServerMetric::kWorkerLoss, "w1", 2);
  EXPECT_NE(metrics.Text().find("worker=\"w0\""), std::string::npos);
  metrics.ForgetWorker("w0");
  metrics.ForgetWorker("never-seen");
  const std::string text = metrics.Text();
  EXPECT_EQ(text.find("worker=\"w0\""), std::string::npos);
  EXPECT_NE(text.find("worker=\"w1\""), std::string::npos);
}

}  // namespace
}  // namespace signvote
