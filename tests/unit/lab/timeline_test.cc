// Goal:   what happens when is a function of the scenario alone, however often it is asked.
#include "lab/run/timeline.h"

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace signvote::lab {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<std::string> Told(const std::vector<TimelineAction>& actions) {
  std::vector<std::string> told;
  for (const TimelineAction& a : actions)
    told.push_back(std::string(Words(a.kind)) + " " + a.worker);
  return told;
}

TEST(TimelineTest, EventsAreDueByRoundAndByTimeInOrder) {
  Scenario scenario{.rounds = 100, .workers = {"w1", "w2"}};
  scenario.events = {
      {.seconds = 5, .kind = ScenarioEventKind::kLeave, .workers = {"w2"}},
      {.round = 10, .kind = ScenarioEventKind::kKill, .workers = {"w1"}, .for_seconds = 2},
      {.round = 10, .kind = ScenarioEventKind::kServerKill, .for_seconds = 1.5},
      {.seconds = 1, .kind = ScenarioEventKind::kPause, .workers = {"w2"}, .for_seconds = 3}};
  Timeline timeline(scenario);
  EXPECT_THAT(timeline.Due(0, 0.5), IsEmpty());
  EXPECT_THAT(Told(timeline.Due(9, 1)), ElementsAre("pause w2"));
  const auto at_ten = timeline.Due(12, 2.5);
  EXPECT_THAT(Told(at_ten), ElementsAre("kill w1", "server_kill "));
  EXPECT_EQ(at_ten[1].for_seconds, 1.5);
  // The pause ends three seconds after its time, the kill two after it was seen to be due.
  EXPECT_THAT(Told(timeline.Due(20, 4)), ElementsAre("resume w2"));
  EXPECT_THAT(Told(timeline.Due(99, 99)), ElementsAre("join w1", "leave w2"));
  EXPECT_THAT(timeline.Due(100, 1000), IsEmpty());
}

struct Lived {
  double seconds = 0;
  std::string what;
  bool operator==(const Lived&) const = default;
};

std::vector<Lived> Watch(const Scenario& scenario, double until, double step) {
  Timeline timeline(scenario);
  std::vector<Lived> lived;
  for (double at = 0; at <= until; at += step)
    for (const std::string& what : Told(timeline.Due(0, at))) lived.push_back({at, what});
  return lived;
}

TEST(TimelineTest, ChurnIsAFunctionOfTheSeedHoweverOftenItIsAskedFor) {
  Scenario scenario{
      .seed = 3,
      .seconds = 1000,
      .workers = {"w1", "w2", "w3"},
      .churn = Churn{.mean_life_seconds = 60, .mean_absence_seconds = 20, .from_seconds = 10}};
  const auto names = [](const std::vector<Lived>& all) {
    std::vector<std::string> out;
    for (const Lived& one : all) out.push_back(one.what);
    return out;
  };
  const auto fine = Watch(scenario, 1000, 0.5);
  EXPECT_EQ(names(fine), names(Watch(scenario, 1000, 250)));
  EXPECT_GE(fine.front().seconds, 10);
  scenario.seed = 4;
  EXPECT_NE(names(fine), names(Watch(scenario, 1000, 0.5)));
}

TEST(TimelineTest, LivesAndAbsencesAlternateAndHaveTheirMeans) {
  const Scenario scenario{.seed = 11,
                          .seconds = 1e6,
                          .workers = {"w1", "w2", "w3", "w4"},
                          .churn = Churn{.mean_life_seconds = 60, .mean_absence_seconds = 20}};
  std::map<std::string, double> since;
  std::map<std::string, bool> away;
  double life = 0, absence = 0;
  int deaths = 0, returns = 0;
  for (const Lived& one : Watch(scenario, 2e5, 0.25)) {
    const bool dies = one.what.starts_with("kill");
    const std::string worker = one.what.substr(one.what.find(' ') + 1);
    EXPECT_NE(away[worker], dies) << worker << " at " << one.seconds;
    away[worker] = dies;
    (dies ? life : absence) += one.seconds - since[worker];
    (dies ? deaths : returns) += 1;
    since[worker] = one.seconds;
  }
  ASSERT_GT(deaths, 8000);
  // The mean of n exponential times deviates by mean/√n; five of these.
  EXPECT_NEAR(life / deaths, 60, 5 * 60 / std::sqrt(deaths));
  EXPECT_NEAR(absence / returns, 20, 5 * 20 / std::sqrt(returns) + 0.25);
}

TEST(TimelineTest, AWorkerWithNoticeIsAskedToLeaveBeforeItIsKilled) {
  const Scenario scenario{
      .seconds = 1000,
      .workers = {"w1"},
      .churn = Churn{.mean_life_seconds = 60, .mean_absence_seconds = 20, .notice_seconds = 5}};
  const auto lived = Watch(scenario, 1000, 0.25);
  ASSERT_GE(lived.size(), 3u);
  for (size_t i = 0; i + 2 < lived.size(); i += 3) {
    EXPECT_EQ(lived[i].what, "leave w1");
    EXPECT_EQ(lived[i + 1].what, "kill w1");
    EXPECT_LE(lived[i + 1].seconds - lived[i].seconds, 5.25);
    EXPECT_EQ(lived[i + 2].what, "join w1");
  }
}

}  // namespace
}  // namespace signvote::lab
