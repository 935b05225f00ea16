// Goal:   the report's figures are those of logs made by hand.
#include "lab/run/run_report.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "lab/run/line_chart.h"
#include "lab/run/run_page.h"

namespace signvote::lab {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::Pair;
using testing::SizeIs;

// A round of 1 s that ends at second 1000 + round + 1, after waiting for 0.25 s of it, and that counts 0.5 s of
// computing of each voter.
std::string Line(uint64_t round, const std::vector<std::string>& members,
                 const std::vector<std::string>& voters, uint64_t up,
                 const std::string& counted = "") {
  nlohmann::ordered_json workers = nlohmann::ordered_json::array();
  for (const std::string& name : voters)
    workers.push_back({{"name", name}, {"compute_seconds", 0.5}});
  nlohmann::ordered_json line = {{"round", round},
                                 {"main_rounds", round + 1},
                                 {"unix_time", 1001.0 + static_cast<double>(round)},
                                 {"stepsize", 0.125},
                                 {"loss", 3.0 - 0.5 * static_cast<double>(round)},
                                 {"workers", workers},
                                 {"members", members},
                                 {"voters", voters},
                                 {"seconds", 1.0},
                                 {"wait_seconds", 0.25},
                                 {"up_rounds_bytes", up},
                                 {"down_rounds_bytes", 2 * up}};
  if (!counted.empty()) line["counted"] = nlohmann::json::parse(counted);
  return line.dump() + "\n";
}

std::string OwnLines(const std::vector<uint64_t>& rounds) {
  std::string log;
  for (const uint64_t round : rounds) absl::StrAppend(&log, "{\"round\":", round, "}\n");
  return log;
}

std::string OwnReport(uint64_t next_round, const std::string& digest) {
  return absl::StrFormat(R"({"next_round":%d,"digest":"%s"})", next_round, digest);
}

// Six rounds of two workers. The server is killed after round 2, before it has written that round's line; w2 is killed
// in round 4 and comes back in round 5, whose second chunk lacks its ballot.
RunInputs Inputs() {
  RunInputs in;
  in.record.outcome = "finished";
  in.record.events = {
      {.kind = ScenarioEventKind::kServerKill, .unix_seconds = 1003.5, .round = 2},
      {.kind = ScenarioEventKind::kKill, .worker = "w2", .unix_seconds = 1004.5, .round = 4},
      {.kind = ScenarioEventKind::kKill,
       .worker = "w2",
       .unix_seconds = 1004.6,
       .round = 4,
       .applied = false},
      {.kind = ScenarioEventKind::kJoin, .worker = "w2", .unix_seconds = 1004.75, .round = 4}};
  in.record.processes = {
      {.name = "w1.1", .worker = "w1", .start_unix_seconds = 1000, .end_unix_seconds = 1006},
      {.name = "w2.1",
       .worker = "w2",
       .start_unix_seconds = 1000,
       .end_unix_seconds = 1004.5,
       .killed = true},
      {.name = "w2.2", .worker = "w2", .start_unix_seconds = 1004.75, .end_unix_seconds = 1006}};
  in.round_log = Line(0, {"w1", "w2"}, {"w1", "w2"}, 100) +
                 Line(1, {"w1", "w2"}, {"w1", "w2"}, 200) + "{\"round\":2,\"main_ro" + "\n" +
                 Line(3, {"w1", "w2"}, {"w1", "w2"}, 50) + Line(4, {"w1"}, {"w1"}, 75) +
                 Line(5, {"w1", "w2"}, {"w1", "w2"}, 150, "[2,1]");
  in.worker_logs = {{"w1.1", OwnLines({0, 1, 2, 3, 4, 5})},
                    {"w2.1", OwnLines({0, 1, 2, 3})},
                    {"w2.2", OwnLines({5})}};
  in.worker_reports = {{"w1.1", OwnReport(6, "00aa")}, {"w2.2", OwnReport(6, "00aa")}};
  in.server = ReplicaState{.round = 6, .digest = "00aa"};
  return in;
}

RunReport Made(const RunInputs& in) {
  const auto report = MakeRunReport(in);
  EXPECT_TRUE(report.ok()) << report.status();
  return report.ok() ? *report : RunReport{};
}

TEST(RunReportTest, WorkThatCountedIsHeldAgainstWorkThatWasDone) {
  const RunReport r = Made(Inputs());
  EXPECT_EQ(r.rounds, 6u);
  EXPECT_EQ(r.unlogged_rounds, 1u);
  EXPECT_EQ(r.seconds, 6);
  // 2, 2, none in a line, 2, 1, and one whole ballot of round 5.
  EXPECT_EQ(r.minibatches_counted, 8u);
  // w1 six, w2 four and the one that it was killed at, and one.
  EXPECT_EQ(r.minibatches_computed, 12u);
  EXPECT_DOUBLE_EQ(r.work_kept, 8.0 / 12);
  EXPECT_DOUBLE_EQ(r.counted_seconds, 0.5 * 9);
  EXPECT_DOUBLE_EQ(r.process_seconds, 6 + 4.5 + 1.25);
  EXPECT_DOUBLE_EQ(r.goodput, 4.5 / 11.75);
  EXPECT_DOUBLE_EQ(r.wait_share, 0.25);
  EXPECT_EQ(r.lost_commits, 0u);
}

TEST(RunReportTest, BytesAndMembersAreThoseOfAllTheServersProcesses) {
  const RunReport r = Made(Inputs());
  ASSERT_THAT(r.points, SizeIs(5));
  EXPECT_EQ(r.points[1].bytes_up, 200u);
  EXPECT_EQ(r.points[2].bytes_up, 250u);
  EXPECT_EQ(r.points[4].bytes_up, 350u);
  EXPECT_EQ(r.points[4].bytes_down, 700u);
  EXPECT_EQ(r.points[3].members, 1u);
  EXPECT_EQ(r.points[0].seconds, 1);
}

TEST(RunReportTest, EachEventHasItsTimeToTheNextCommit) {
  const RunReport r = Made(Inputs());
  ASSERT_THAT(r.events, SizeIs(3)) << "without what there was nobody to do to";
  EXPECT_EQ(r.events[0].kind, "server_killed");
  EXPECT_EQ(r.events[0].round, 2u);
  EXPECT_DOUBLE_EQ(r.events[0].seconds_to_next_commit.value(), 0.5);
  EXPECT_EQ(r.events[1].kind, "worker_killed");
  EXPECT_EQ(r.events[2].kind, "joined");
  EXPECT_DOUBLE_EQ(r.events[2].seconds_to_next_commit.value(), 0.25);
  EXPECT_DOUBLE_EQ(r.events[2].seconds_to_first_ballot.value(), 1.25);
}

TEST(RunReportTest, AReplicaThatDiffersOrIsOfAnotherRoundIsToldByItsDigest) {
  RunInputs in = Inputs();
  RunReport r = Made(in);
  EXPECT_TRUE(r.replicas_equal);
  EXPECT_THAT(r.digests,
              ElementsAre(Pair("server", "00aa"), Pair("w1", "00aa"), Pair("w2", "00aa")));

  in.worker_reports["w2.2"] = OwnReport(6, "00ab");
  EXPECT_FALSE(Made(in).replicas_equal);
  // One that left earlier has another replica by right.
  in.worker_reports["w2.2"] = OwnReport(5, "00ab");
  r = Made(in);
  EXPECT_TRUE(r.replicas_equal);
  EXPECT_THAT(r.digests, ElementsAre(Pair("server", "00aa"), Pair("w1", "00aa")));

  in.server->round = 5;
  EXPECT_FALSE(Made(in).replicas_equal) << "a server that is behind its workers";
  in = Inputs();
  in.worker_reports.clear();
  EXPECT_FALSE(Made(in).replicas_equal) << "nobody is left to compare with";
}

TEST(RunReportTest, ARoundThatWasCommittedTwiceIsALostCommit) {
  RunInputs in = Inputs();
  in.round_log += Line(5, {"w1", "w2"}, {"w1"}, 160);
  RunReport r = Made(in);
  EXPECT_EQ(r.lost_commits, 1u);
  EXPECT_EQ(r.minibatches_counted, 8u) << "it counts as what it became";

  in = Inputs();
  in.worker_logs["w1.1"] = OwnLines({0, 1, 2, 3, 3, 4, 5});
  EXPECT_EQ(Made(in).lost_commits, 1u) << "a worker was told of it twice";
  in.worker_logs["w1.1"] = OwnLines({0, 1, 2, 3, 4, 5, 6, 7});
  EXPECT_EQ(Made(in).lost_commits, 2u) << "a worker was told of rounds that the run does not have";
}

TEST(RunReportTest, LocalStepsCountAsManyMinibatches) {
  RunInputs in;
  in.record.processes = {
      {.name = "w1.1", .worker = "w1", .start_unix_seconds = 1000, .end_unix_seconds = 1002}};
  std::string line = Line(0, {"w1"}, {"w1"}, 1);
  line.insert(line.size() - 2, ",\"local_steps\":16");
  in.round_log = line;
  in.worker_logs = {{"w1.1", OwnLines({0})}};
  const RunReport r = Made(in);
  EXPECT_EQ(r.minibatches_counted, 16u);
  EXPECT_EQ(r.minibatches_computed, 16u);
  EXPECT_EQ(r.work_kept, 1);
}

TEST(RunReportTest, HeldOutLossesStandAtTheMinibatchesThatWereCountedBefore) {
  RunInputs in = Inputs();
  std::string line = Line(6, {"w1"}, {"w1"}, 160);
  line.insert(
      line.size() - 2,
      R"(,"held_out":[{"round":4,"loss":2.5,"error":0.125},{"round":0,"loss":3},{"round":5,"loss":null}])");
  in.round_log += line;
  const RunReport r = Made(in);
  ASSERT_THAT(r.held_out, SizeIs(2));
  EXPECT_EQ(r.held_out[0].round, 0u);
  EXPECT_EQ(r.held_out[0].minibatches, 0u);
  EXPECT_EQ(r.held_out[1].round, 4u);
  EXPECT_EQ(r.held_out[1].minibatches, 6u);
  EXPECT_EQ(nlohmann::json::parse(ReportJson(r))["held_out"]["error"], 0.125);
  EXPECT_THAT(RunPage("x", {r}), HasSubstr("2.5000 ± 0.1250 after 6 minibatches"));
  EXPECT_THAT(RunPage("x", {Made(Inputs())}), Not(HasSubstr("held-out loss against")));
}

TEST(RunReportTest, ARunWithoutARoundHasNoReport) {
  EXPECT_TRUE(absl::IsInvalidArgument(MakeRunReport({.round_log = "no JSON\n"}).status()));
}

TEST(RunReportTest, TheFilesHaveWhatTheReportHas) {
  RunInputs in = Inputs();
  in.chosen = {{"workers.count", "2"}};
  const RunReport r = Made(in);
  const auto json = nlohmann::json::parse(ReportJson(r));
  for (const char* const key :
       {"rounds", "events", "lost_commits", "replicas_equal", "digests", "work_kept", "goodput"})
    EXPECT_TRUE(json.contains(key)) << key;
  EXPECT_EQ(json["events"][0]["kind"], "server_killed");
  EXPECT_EQ(json["events"][0]["seconds_to_next_commit"], 0.5);
  EXPECT_FALSE(json["events"][0].contains("worker"));
  EXPECT_EQ(json["chosen"]["workers.count"], "2");
  EXPECT_EQ(json["loss"]["last"], 0.5);
  EXPECT_EQ(nlohmann::json::parse(ReportsJson({r, r}))["runs"].size(), 2u);
  EXPECT_THAT(RoundsCsv(r),
              HasSubstr("\n5,6,6.000000,1.000000,0.250000,0.5,0.125,350,700,8,2,2\n"));
  EXPECT_THAT(EventsCsv(r), HasSubstr("\njoined,w2,4,4.750,0.250,1.250\n"));
}

TEST(RunPageTest, ThePageIsOneFileAndNamesAreText) {
  RunReport r = Made(Inputs());
  r.name = "a<b>&c";
  const std::string page = RunPage("x<y", {r, r});
  EXPECT_THAT(page, HasSubstr("<title>x&lt;y</title>"));
  EXPECT_THAT(page, HasSubstr("a&lt;b&gt;&amp;c"));
  EXPECT_THAT(page, Not(HasSubstr("<b>&c")));
  for (const char* const outside : {"<script", "<link", "<img", "src=", "href=", "url(", "@import"})
    EXPECT_THAT(page, Not(HasSubstr(outside)));
  EXPECT_THAT(page, HasSubstr("66.67 %"));
}

TEST(LineChartTest, PointsLieWhereTheyBelongAndWhatIsNotFiniteIsLeftOut) {
  LineChart chart{.title = "t", .x_label = "x", .y_label = "y", .from_zero = true};
  chart.series = {{.name = "a", .points = {{0, 0}, {1, 5}, {2, 1.0 / 0.0}, {2, 10}}}};
  const std::string svg = SvgOf(chart);
  // From the left edge at 0 to the right one at 2; the middle's height is half of the last one's.
  EXPECT_THAT(svg, HasSubstr("d=\"M70.0 256.0L308.0 147.3L546.0 38.7\""));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  chart.series = {};
  EXPECT_THAT(SvgOf(chart), HasSubstr("nothing to show"));
  chart.series = {{.name = "one", .points = {{3, 3}}}};
  EXPECT_THAT(SvgOf(chart), Not(HasSubstr("nan")));
}

TEST(LineChartTest, ALongSeriesIsThinnedToItsEnds) {
  LineChart chart{.title = "t", .style = ChartStyle::kDots};
  chart.series.emplace_back();
  for (int i = 0; i < 100000; ++i) chart.series[0].points.emplace_back(i, i);
  const std::string svg = SvgOf(chart);
  EXPECT_LT(svg.size(), 200'000u);
  EXPECT_THAT(svg, HasSubstr("cx=\"546.0\""));
}

}  // namespace
}  // namespace signvote::lab
