// Goal:   a sweep's file becomes the flags that it says, and what is wrong in it is told by line.
#include "lab/sweep/spec.h"

#include <algorithm>
#include <set>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "lab/cell.h"
#include "lab/sweep/plan.h"

namespace signvote::lab {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsSupersetOf;
using testing::Not;

std::string ValueOf(const SweepCell& cell, const std::string& flag) {
  const auto found = std::find(cell.flags.begin(), cell.flags.end(), flag);
  return found == cell.flags.end() || found + 1 == cell.flags.end() ? "" : *(found + 1);
}

TEST(SpecTest, EveryCombinationIsAGroupAndLaterSectionsOverrideEarlierOnes) {
  const auto spec = ParseSweep(R"(
tasks = ["mlp", "small"]
directions = ["raw", "lion"]
rules = ["alias"]
workers = [1, 4]
local_steps = [1, 16]
[run]
max-rounds = 100
weight-decay = 0.1
[task.small]
task = "logistic"
max-rounds = 50
batch = 8
[direction.raw]
direction = "signsgd"
)",
                               "a.toml");
  ASSERT_TRUE(spec.ok()) << spec.status();
  ASSERT_EQ(spec->groups.size(), 2u * 2 * 2 * 2);
  const SweepCell first = CellOf(*spec, 0, 3, 0);
  EXPECT_THAT(first.flags, IsSupersetOf({"--direction", "signsgd", "--rule", "alias", "--seed", "3",
                                         "--max-rounds", "100", "--weight-decay"}));
  EXPECT_THAT(first.flags, Not(Contains("--local-steps")));
  const CellGroup& last = spec->groups.back();
  EXPECT_EQ(last.task, "small");
  EXPECT_EQ(last.task_options.name, "logistic");
  EXPECT_EQ(last.task_options.rows, 8u);
  EXPECT_EQ(last.workers, 4u);
  EXPECT_THAT(CellOf(*spec, spec->groups.size() - 1, 1, 0).flags,
              IsSupersetOf({"--direction", "lion", "--max-rounds", "50", "--local-steps", "16"}));
}

TEST(SpecTest, AScheduleOfLocalStepsHasANameAndRunsOfEqualDataHaveRoundsOfTheirOwn) {
  const auto spec = ParseSweep(R"(
tasks = ["mlp"]
rules = ["lever"]
local_steps = [1, 16, "growing"]
[task.mlp]
minibatches = 3200
[schedule.growing]
local-steps = "16,96@25"
)",
                               "a.toml");
  ASSERT_TRUE(spec.ok()) << spec.status();
  ASSERT_EQ(spec->groups.size(), 3u);
  EXPECT_EQ(ValueOf(CellOf(*spec, 0, 1, 0), "--max-rounds"), "3200");
  EXPECT_EQ(ValueOf(CellOf(*spec, 1, 1, 0), "--max-rounds"), "200");
  EXPECT_EQ(spec->groups[2].local_steps, "growing");
  EXPECT_EQ(ValueOf(CellOf(*spec, 2, 1, 0), "--local-steps"), "16,96@25");
  // 800 of 16 and 2,400 of 96.
  EXPECT_EQ(ValueOf(CellOf(*spec, 2, 1, 0), "--max-rounds"), "75");
  // With local steps the server would average.
  EXPECT_EQ(ValueOf(CellOf(*spec, 2, 1, 0), "--aggregate"), "vote");
}

TEST(SpecTest, ATasksSeedMayBeAnyWholeNumber) {
  const auto spec = ParseSweep(
      "tasks = [\"mlp\"]\nrules = [\"lever\"]\n[task.mlp]\ntask-seed = 4294967295\n", "a.toml");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->groups[0].task_options.task_seed, 4294967295u);
}

TEST(SpecTest, AGridIsOverTheStepsize) {
  const auto spec = ParseSweep(
      "tasks = [\"mlp\"]\nrules = [\"cosine\"]\n[rule.cosine]\nrule = \"fixed\"\ngrid = 0.01\n",
      "a.toml");
  ASSERT_TRUE(spec.ok()) << spec.status();
  const SweepCell cell = CellOf(*spec, 0, 1, 4);
  EXPECT_DOUBLE_EQ(*cell.stepsize, 0.1);
  const auto flag = std::find(cell.flags.begin(), cell.flags.end(), "--stepsize");
  ASSERT_NE(flag, cell.flags.end());
  EXPECT_DOUBLE_EQ(std::stod(*(flag + 1)), 0.1);
}

TEST(SpecTest, AShortNameStandsForItsFlagsAndASectionGoesOnFromThem) {
  const auto spec = ParseSweep(R"(
tasks = ["mlp"]
directions = ["stosign-no-noise", "calm"]
rules = ["alias2-directional", "early", "lever-legs"]
[direction.calm]
direction = "signum-noise"
noise-decay = 0.5
[rule.early]
rule = "lever-lite"
lever-start = 1e-5
[rule.alias2-directional]
alias-probe-every = 2
)",
                               "a.toml");
  ASSERT_TRUE(spec.ok()) << spec.status();
  const SweepCell alias = CellOf(*spec, 0, 1, 0), early = CellOf(*spec, 1, 1, 0),
                  legs = CellOf(*spec, 2, 1, 0), calm = CellOf(*spec, 3, 1, 0);
  EXPECT_EQ(ValueOf(alias, "--direction"), "stosign");
  EXPECT_EQ(ValueOf(alias, "--noise"), "off");
  EXPECT_EQ(ValueOf(alias, "--alias-probe"), "directional");
  EXPECT_EQ(ValueOf(alias, "--alias-probe-every"), "2");
  EXPECT_EQ(ValueOf(early, "--rule"), "lever");
  EXPECT_EQ(ValueOf(early, "--lever-form"), "lite");
  EXPECT_EQ(std::stod(ValueOf(early, "--lever-start")), 1e-5);
  EXPECT_THAT(legs.flags, Contains("--length-unknown"));
  EXPECT_NE(legs.id, early.id);
  EXPECT_EQ(ValueOf(calm, "--noise"), "coordinate");
  EXPECT_EQ(std::stod(ValueOf(calm, "--noise-decay")), 0.5);
  // What results.csv calls them.
  EXPECT_EQ(spec->groups[3].direction, "calm");
  EXPECT_EQ(spec->groups[1].rule, "early");
}

TEST(SpecTest, AFixedStepsizeIsTunedUnlessItIsGiven) {
  const auto spec = ParseSweep(R"(
tasks = ["mlp", "logistic"]
rules = ["fixed-cosine", "given", "alias2"]
[task.logistic]
grid = 1e-2
[rule.given]
rule = "fixed"
stepsize = 0.25
)",
                               "a.toml");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->groups[0].grid, 1e-3);
  EXPECT_EQ(spec->groups[3].grid, 1e-2);
  for (const size_t untuned : {1u, 2u, 4u, 5u})
    EXPECT_FALSE(spec->groups[untuned].grid.has_value());
  EXPECT_EQ(CellOf(*spec, 1, 1, 0).stepsize, 0.25);
  EXPECT_EQ(CellOf(*spec, 2, 1, 0).stepsize, std::nullopt);
}

TEST(SpecTest, RunsOfTwoNamesAreTwoRunsThoughTheirFlagsAreEqual) {
  const auto spec = ParseSweep(R"(
tasks = ["mlp", "also"]
directions = ["lion", "mine"]
rules = ["alias2", "twin"]
[task.also]
task = "mlp"
[direction.mine]
direction = "lion"
[rule.twin]
rule = "alias2"
)",
                               "a.toml");
  ASSERT_TRUE(spec.ok()) << spec.status();
  std::set<std::string> ids;
  for (const SweepCell& cell : PlanSweep(*spec, {}).known) {
    EXPECT_EQ(cell.flags, CellOf(*spec, 0, 1, 0).flags);
    ids.insert(cell.id);
  }
  EXPECT_EQ(ids.size(), 2u * 2 * 2);
}

TEST(SpecTest, ASwitchThatIsOffIsSaidToBeSo) {
  const auto spec = ParseSweep(
      "tasks = [\"mlp\"]\ndirections = [\"signsgd-feedback\"]\nrules = [\"alias2\"]\n"
      "[run]\nmax-rounds = 3\n[direction.signsgd-feedback]\nerror-feedback = false\n",
      "a.toml");
  ASSERT_TRUE(spec.ok()) << spec.status();
  const SweepCell cell = CellOf(*spec, 0, 1, 0);
  EXPECT_THAT(cell.flags, Contains("--error-feedback=false"));
  const auto flags = ReadRunFlags(FileSystem::Posix(), cell.flags, 1);
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_FALSE(flags->run.direction.error_feedback);
}

TEST(SpecTest, CellsHaveListsOfTheirOwnWhichThoseAtTheTopCompleteUnlessTheyDo) {
  const auto spec = ParseSweep(R"(
rules = ["lever", "alias2"]
seeds = [1, 2, 3]
[[cells]]
tasks = ["mlp", "long"]
directions = ["signum", "lion"]
[[cells]]
tasks = ["mlp"]
rules = ["lever"]
workers = [1, 16]
seeds = [7]
aggregate = ["average"]
[task.long]
task = "mlp"
max-rounds = 4800
)",
                               "a.toml");
  ASSERT_TRUE(spec.ok()) << spec.status();
  ASSERT_EQ(spec->groups.size(), 2u * 2 * 2 + 2);
  const CellGroup& first = spec->groups.front();
  EXPECT_EQ(first.workers, 4u);
  EXPECT_EQ(first.aggregate, "vote");
  EXPECT_THAT(first.seeds, ElementsAre(1, 2, 3));
  const CellGroup& last = spec->groups.back();
  EXPECT_EQ(last.direction, "signum");
  EXPECT_EQ(last.rule, "lever");
  EXPECT_EQ(last.aggregate, "average");
  EXPECT_EQ(last.workers, 16u);
  EXPECT_THAT(last.seeds, ElementsAre(7));
  EXPECT_EQ(PlanSweep(*spec, {}).next.size(), 8u * 3 + 2);
}

struct Wrong {
  const char* text;
  const char* told;
};

class SpecRefusalTest : public testing::TestWithParam<Wrong> {};

TEST_P(SpecRefusalTest, NamesTheLineAndWhatIsWrong) {
  const auto spec = ParseSweep(GetParam().text, "a.toml");
  ASSERT_FALSE(spec.ok());
  EXPECT_EQ(ExitCodeFor(spec.status()), ExitCode::kUsage);
  EXPECT_THAT(std::string(spec.status().message()), HasSubstr("a.toml: "));
  EXPECT_THAT(std::string(spec.status().message()), HasSubstr(GetParam().told));
}

INSTANTIATE_TEST_SUITE_P(
    Files, SpecRefusalTest,
    testing::Values(Wrong{"tasks = [\"mlp\"\n", "line "},
                    Wrong{"tasks = [\"mlp\"]\nrounds = 3\n", "line 2: \"rounds\" is not known"},
                    Wrong{"tasks = []\nrules = [\"alias\"]\n", "line 1"},
                    Wrong{"tasks = [\"a\", \"a\"]\nrules = [\"alias\"]\n", "none of them twice"},
                    Wrong{"tasks = [\"a,b\"]\nrules = [\"alias\"]\n", "\"tasks\""},
                    Wrong{"rules = [\"alias\"]\n", "at least one"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\nseeds = [0]\n", "line 3"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[rule.x]\ngrid = -1\n", "line 4"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[rule.x]\ngrid = 1e25\n", "line 4"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[rule.x]\ngrid = 1e-25\n", "line 4"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\\ry\"]\n", "line 2"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[run]\nseed = []\n", "line 4"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\nrun = 3\n", "line 3"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[rule.y]\nbeta = 1\n",
                          "line 3: no run has the rule \"y\""},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[run]\ndirection = \"lion\"\n",
                          "line 4: \"direction\" is said by the lists"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[rule.x]\nseed = 3\n",
                          "line 4: \"seed\" is said by the lists"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[run]\nexport = \"m\"\n",
                          "line 4: every run would write the same"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[rule.x]\nrule = 3\n",
                          "line 4: \"rule\" must be a text"},
                    Wrong{"tasks = [\"mlp\"]\n[[cells]]\nrules = [\"x\"]\nseed = [3]\n",
                          "line 4: \"seed\" is not known"},
                    Wrong{"tasks = [\"mlp\"]\n[[cells]]\nseeds = [3]\n",
                          "line 2: \"tasks\" and \"rules\" must each name at least one"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\ncells = 3\n",
                          "line 3: \"cells\" must be sections [[cells]]"},
                    Wrong{"rules = [\"x\"]\n[[cells]]\ntasks = [\"a\"]\n[[cells]]\n"
                          "tasks = [\"b\", \"a\"]\n",
                          "line 4: a signum x vote H=1 n=4 is in an earlier [[cells]]"},
                    Wrong{"rules = [\"x\"]\n[[cells]]\ntasks = [\"a\"]\n[task.b]\nbatch = 1\n",
                          "line 4: no run has the task \"b\""},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[task.mlp]\ntask-seed = -1\n",
                          "line 4: \"task-seed\" must be a whole number, 0 or more"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\nlocal_steps = [\"slow\"]\n",
                          "line 3: \"local_steps\" must be a list of numbers from 1 to 4096"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\nlocal_steps = [\"s\"]\n"
                          "[schedule.s]\nsteps = 3\n",
                          "line 4: a schedule has one key, \"local-steps\""},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[schedule.s]\nlocal-steps = \"2\"\n",
                          "line 3: no run has the schedule \"s\""},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\n[run]\nminibatches = 0\n",
                          "line 4: \"minibatches\" must be a whole number, 1 or more"},
                    Wrong{"tasks = [\"mlp\"]\nrules = [\"x\"]\nlocal_steps = [\"s\"]\n[run]\n"
                          "minibatches = 9\n[schedule.s]\nlocal-steps = \"2,x\"\n",
                          "a.toml: --local-steps 2,x: 'x' is no number"}));

}  // namespace
}  // namespace signvote::lab
