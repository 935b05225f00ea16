// Goal:   a scenario's file becomes the run that it says, and what is wrong in it is told by line, or by the
//         setting that said it.
#include "lab/run/scenario.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"

namespace signvote::lab {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::SizeIs;
using testing::UnorderedElementsAre;

constexpr std::string_view kWhole = R"(
seed = 7
rounds = 300
seconds = 60
[server]
rule = "fixed"
stepsize = 1e-3
deadline-floor-ms = 200
[workers]
count = 3
compute-ms = 20
[worker.w2]
compute-ms = 100
[churn]
mean_life = 60
mean_absence = 20.5
from_seconds = 5
notice_seconds = 2
[links]
rate_mbit = 100
[link.w3]
delay_ms = 10
[[events]]
round = 40
kind = "kill"
worker = ["w1", "w2"]
for_seconds = 3
[[events]]
seconds = 12.5
kind = "join"
count = 2
[[events]]
seconds = 13
kind = "join"
worker = "late"
[[events]]
round = 50
kind = "server_kill"
[[events]]
round = 60
kind = "slow"
worker = "w5"
compute_ms = 80
[[events]]
round = 60
kind = "link"
worker = "late"
cut = true
)";

absl::StatusOr<std::vector<Scenario>> Parse(std::string_view text,
                                            const std::vector<std::string>& settings = {}) {
  return ParseScenarios(text, "a.toml", settings);
}

// Of one scenario that is no matrix.
Scenario One(std::string_view text, const std::vector<std::string>& settings = {}) {
  const auto all = Parse(text, settings);
  EXPECT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all.ok() ? all->size() : 0, 1u);
  return all.ok() && !all->empty() ? all->front() : Scenario{};
}

TEST(ScenarioTest, AFileSaysTheRunItsWorkersItsLinksAndWhatHappens) {
  const Scenario s = One(kWhole);
  EXPECT_EQ(s.seed, 7u);
  EXPECT_EQ(s.rounds, 300u);
  EXPECT_EQ(s.seconds, 60);
  EXPECT_TRUE(s.journal);
  EXPECT_THAT(s.server, UnorderedElementsAre(Pair("rule", "fixed"), Pair("stepsize", "0.001"),
                                             Pair("deadline-floor-ms", "200")));
  EXPECT_THAT(s.workers, ElementsAre("w1", "w2", "w3"));
  EXPECT_THAT(s.FlagsOf("w1"), ElementsAre(Pair("compute-ms", "20")));
  EXPECT_THAT(s.FlagsOf("w2"), ElementsAre(Pair("compute-ms", "100")));
  ASSERT_TRUE(s.churn.has_value());
  EXPECT_EQ(s.churn->mean_absence_seconds, 20.5);
  EXPECT_EQ(s.LinkOf("w1"), (LinkShape{.rate_mbit = 100}));
  EXPECT_EQ(s.LinkOf("w3"), (LinkShape{.rate_mbit = 100, .delay_ms = 10}));
  ASSERT_THAT(s.events, SizeIs(6));
  EXPECT_EQ(s.events[0].round, 40u);
  EXPECT_THAT(s.events[0].workers, ElementsAre("w1", "w2"));
  EXPECT_EQ(s.events[0].for_seconds, 3);
  EXPECT_THAT(s.events[1].workers, ElementsAre("w4", "w5"));
  EXPECT_THAT(s.events[3].workers, ElementsAre());
  EXPECT_EQ(s.events[4].compute_ms, 80u);
  EXPECT_TRUE(s.events[5].link.cut);
  EXPECT_EQ(s.events[5].link.rate_mbit, 100);
  EXPECT_TRUE(s.IsSlowed("w5"));
  EXPECT_FALSE(s.IsSlowed("w1"));
  EXPECT_THAT(s.AllWorkers(), ElementsAre("w1", "w2", "w3", "w4", "w5", "late"));
  EXPECT_EQ(NameOf(s), "");
}

TEST(ScenarioTest, AMatrixIsEveryCombinationAndSettingsOverrideTheFileAndAnAxis) {
  constexpr std::string_view kMatrix = R"(
rounds = 10
[workers]
count = 2
[churn]
mean_life = 60
mean_absence = 20
[matrix]
workers.count = [2, 4]
server.deadline = ["auto", "off"]
undisturbed = [false, true]
)";
  const auto all = Parse(kMatrix);
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_THAT(*all, SizeIs(8));
  EXPECT_EQ(NameOf(all->front()), "server.deadline=auto,undisturbed=false,workers.count=2");
  EXPECT_EQ(NameOf((*all)[1]), "server.deadline=auto,undisturbed=false,workers.count=4");
  EXPECT_THAT(all->back().workers, SizeIs(4));
  EXPECT_EQ(all->back().server.at("deadline"), "off");
  EXPECT_TRUE(all->front().churn.has_value());
  EXPECT_FALSE(all->back().churn.has_value()) << "undisturbed";

  const auto set = Parse(kMatrix, {"workers.count=3", "churn.mean_life = 30",
                                   "server.direction=lion", "undisturbed=false"});
  ASSERT_TRUE(set.ok()) << set.status();
  ASSERT_THAT(*set, SizeIs(2));
  EXPECT_THAT(set->front().workers, SizeIs(3));
  EXPECT_EQ(set->front().churn->mean_life_seconds, 30);
  EXPECT_EQ(set->front().server.at("direction"), "lion");
}

TEST(ScenarioTest, WhatIsWrongIsToldByLineWithWhatIsAccepted) {
  const std::string head = "rounds = 10\n[workers]\ncount = 2\n";
  const struct {
    std::string text;
    std::vector<std::string> said;
  } kCases[] = {
      {"rounds = ", {"line 1"}},
      {"[workers]\ncount = 2\n",
       {"nothing ends the run", "\"rounds\"", "\"seconds\"", "\"minibatches\""}},
      {"rounds = 10\n", {"[workers] must have \"count\""}},
      {"round = 10\n", {"line 1: \"round\" is not known", "seed, rounds"}},
      {"rounds = 0\n[workers]\ncount=1\n", {"line 1: \"rounds\" must be a whole number from 1"}},
      {"seconds = nan\n[workers]\ncount=1\n", {"line 1: \"seconds\" must be a number"}},
      {head + "kind = \"other\"\n", {"line 4: \"kind\" must be \"synthetic\"", "\"model\""}},
      {head + "name = \"x\"\n", {"line 4: \"name\" is said by the lab; leave it away"}},
      {head + "Bad = 1\n", {"line 4: \"Bad\" is no flag's name"}},
      {head + "noise = [1]\n", {"line 4: \"noise\" must be a text, a number"}},
      {head + "[server]\nmax-rounds = 3\n",
       {"line 5: \"max-rounds\" is said by the lab from the top"}},
      {head + "[churn]\nmean_life = 3\n", {"line 4: [churn] must have \"mean_life\" and"}},
      {head + "[churn]\nlife = 3\n", {"line 5: \"life\" is not known in [churn]", "mean_life"}},
      {head + "[worker.w9]\nnoise = 3\n", {"line 4: [worker.w9] is of no worker"}},
      {head + "[link.w1]\nrate_mbit = 3\n", {"line 4: links are shaped where there is a section"}},
      {head + "[matrix]\nworkers.count = 3\n",
       {"line 5: a key of [matrix], here \"workers.count\""}},
      {head + "[matrix]\nseed = [1, 1]\n", {"seed=1 twice"}},
      {head + "[[events]]\nround = 3\n",
       {"line 4: an event's \"kind\" must be one of join, leave"}},
      {head + "[[events]]\nkind = \"kill\"\nworker = \"w1\"\n",
       {"line 4: an event must have either"}},
      {head + "[[events]]\nkind = \"kill\"\nworker = \"w1\"\nround = 1\nseconds = 1\n",
       {"line 4: an event must have either \"round\""}},
      {head + "[[events]]\nkind = \"kill\"\nround = 1\n",
       {"line 4: an event must have \"worker\""}},
      {head + "[[events]]\nkind = \"kill\"\nround = 1\nworker = \"w7\"\n",
       {"line 4: there is no worker \"w7\"", "w1 to w2"}},
      {head + "[[events]]\nkind = \"kill\"\nround = 1\nworker = \"../x\"\n",
       {"line 7: \"worker\" must be a name"}},
      {head + "[[events]]\nkind = \"kill\"\nround = 1\nworker = \"w1\"\ncompute_ms = 3\n",
       {"line 8: \"compute_ms\" is of events that slow"}},
      {head + "[[events]]\nkind = \"server_kill\"\nround = 1\nworker = \"w1\"\n",
       {"line 7: an event of the server has no \"worker\""}},
      {head + "[server]\njournal = false\n[[events]]\nkind = \"server_kill\"\nround = 1\n",
       {"line 6: a server without a journal takes its run with it"}},
      {head + "kind = \"model\"\n[[events]]\nkind = \"slow\"\nround = "
              "1\nworker=\"w1\"\ncompute_ms=1\n",
       {"line 5: only synthetic workers"}},
      {head + "[[events]]\nkind = \"link\"\nround = 1\nworker=\"w1\"\ncut=true\n",
       {"line 4: links are shaped where"}},
  };
  for (const auto& c : kCases) {
    const auto parsed = Parse(c.text);
    ASSERT_FALSE(parsed.ok()) << c.text;
    EXPECT_EQ(ExitCodeFor(parsed.status()), ExitCode::kUsage) << c.text;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("a.toml: "));
    for (const std::string& said : c.said)
      EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(said)) << c.text;
  }
}

TEST(ScenarioTest, WhatASettingSaysWrongIsToldByTheSetting) {
  const std::string text = "rounds = 10\n[workers]\ncount = 2\n";
  for (const auto& [setting, said] : std::vector<std::pair<std::string, std::string>>{
           {"workers.count", "must be KEY=VALUE"},
           {"workers.count=0", "--set workers.count=0: \"count\" must be a whole number"},
           {"workers=3", "--set workers=3: \"workers\" must be a section"},
           {"round=3", "--set round=3: \"round\" is not known at the top"},
           {"a..b=3", "--set a..b=3"},
           {"seed=1\nrounds=3", "must be one KEY=VALUE"}}) {
    const auto parsed = Parse(text, {setting});
    ASSERT_FALSE(parsed.ok()) << setting;
    EXPECT_EQ(ExitCodeFor(parsed.status()), ExitCode::kUsage) << setting;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(said)) << setting;
  }
}

}  // namespace
}  // namespace signvote::lab
