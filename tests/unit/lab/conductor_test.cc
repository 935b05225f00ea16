// Goal:   a scenario is carried out: what is due is done to the right process, a killed server comes back where it was,
//         and every wait ends with the name of whom it was for.
// Method: processes that are none. A server of theirs commits a round every 100 ms of a fake clock's while somebody is
//         there to vote, and writes the log that the conductor follows.
#include "lab/run/conductor.h"

#include <signal.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/exit_codes.h"
#include "tests/support/temp_dir.h"

namespace signvote::lab {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsSupersetOf;
using testing::Not;
using testing::SizeIs;
using testing::UnorderedElementsAre;

std::string ValueOf(const std::vector<std::string>& command, const std::string& flag) {
  const auto found = std::find(command.begin(), command.end(), flag);
  return found == command.end() || found + 1 == command.end() ? "" : *(found + 1);
}

void Append(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::app) << text;
}

class World final : public Processes, public FakeClock {
 public:
  struct Started {
    std::vector<std::string> command;
    std::optional<ProcessEnd> end;
    bool stopped = false;
    bool server = false;
    std::string name;  // of a worker
  };

  absl::StatusOr<int64_t> Start(const std::vector<std::string>& command,
                                const std::string& log_path) override {
    Started started{.command = command,
                    .server = command.front() == "server",
                    .name = ValueOf(command, "--name")};
    if (started.server) {
      if (ports_taken > 0) {
        --ports_taken;
        started.end = ProcessEnd{.code = static_cast<int>(ExitCode::kPortInUse)};
      } else {
        Append(ValueOf(command, "--port-file"), "{}");
        paused_ = false;
      }
    } else if (command.front() == "control") {
      if (command.back() == "pause") paused_ = true;
      if (command.back() == "--json")
        Append(log_path, absl::StrCat("{\"phase\":\"", paused_ ? "paused" : "open", "\"}"));
      started.end = ProcessEnd{};
    }
    Append(log_path, command.front() == "control" ? "" : "started\n");
    all.push_back(std::move(started));
    return static_cast<int64_t>(all.size() - 1);
  }

  void Signal(int64_t id, int signal) override {
    Started& process = all[static_cast<size_t>(id)];
    if (process.end.has_value()) return;
    if (signal == SIGKILL) process.end = ProcessEnd{.signal = SIGKILL};
    if (signal == SIGTERM) process.end = ProcessEnd{};
    if (signal == SIGSTOP) process.stopped = true;
    if (signal == SIGCONT) process.stopped = false;
  }

  std::optional<ProcessEnd> Ended(int64_t id) override { return all[static_cast<size_t>(id)].end; }

  // Time goes on.
  void SleepFor(Duration d) override {
    Advance(d);
    if (Now() < due_) return;
    due_ = Now() + std::chrono::milliseconds(100);
    Round();
  }

  std::vector<std::string> Names(bool alive_only) const {
    std::vector<std::string> names;
    for (const Started& process : all)
      if (!process.name.empty() && (!alive_only || (!process.end.has_value() && !process.stopped)))
        names.push_back(process.name);
    return names;
  }

  std::vector<Started> all;
  int ports_taken = 0;
  bool stuck = false;  // the server commits nothing more
  // A worker that ends with this code once so many rounds are committed.
  struct {
    uint64_t round = UINT64_MAX;
    std::string name;
    int code = 0;
  } fails;
  uint64_t rounds = 0;
  std::map<uint64_t, std::vector<std::string>> voters;  // by round

 private:
  void Round() {
    Started* server = nullptr;
    for (Started& process : all)
      if (process.server && !process.end.has_value()) server = &process;
    const std::vector<std::string> there = Names(/*alive_only=*/true);
    if (server == nullptr || paused_ || stuck || there.empty()) return;
    voters[rounds] = there;
    Append(ValueOf(server->command, "--round-log"),
           absl::StrCat("{\"round\":", rounds, ",\"voters\":[\"", absl::StrJoin(there, "\",\""),
                        "\"]}\n"));
    ++rounds;
    for (Started& process : all)
      if (process.name == fails.name && rounds == fails.round)
        process.end = ProcessEnd{.code = fails.code};
    if (rounds < std::stoull(ValueOf(server->command, "--max-rounds"))) return;
    for (Started& process : all)
      if (!process.end.has_value() && !process.stopped) process.end = ProcessEnd{};
  }

  bool paused_ = false;
  Time due_;
};

class ConductorTest : public testing::Test {
 protected:
  absl::Status Run(const Scenario& scenario, uint64_t stop_after_rounds = UINT64_MAX) {
    Conductor conductor({.fs = FileSystem::Posix(),
                         .clock = &world_,
                         .processes = &world_,
                         .wait =
                             [&](Duration d) {
                               world_.SleepFor(d);
                               return world_.rounds >= stop_after_rounds;
                             },
                         .tell = [&](const std::string& line) { told_.push_back(line); }},
                        {.programs = {.server = "server",
                                      .worker = "model",
                                      .synthetic = "synthetic",
                                      .control = "control"},
                         .patience = std::chrono::seconds(30)},
                        scenario, {folder_.path()});
    const absl::Status status = conductor.Run();
    record_ = conductor.record();
    return status;
  }

  std::vector<std::string> Happened() const {
    std::vector<std::string> all;
    for (const RecordedEvent& event : record_.events)
      if (event.applied) all.push_back(absl::StrCat(Words(event.kind), " ", event.worker));
    return all;
  }

  TempDir folder_;
  World world_;
  RunRecord record_;
  std::vector<std::string> told_;
};

Scenario Small() { return {.rounds = 100, .workers = {"w1", "w2"}}; }

TEST_F(ConductorTest, WhatIsDueIsDoneAndTheRunEndsByItself) {
  Scenario scenario = Small();
  scenario.events = {
      {.round = 10, .kind = ScenarioEventKind::kKill, .workers = {"w2"}, .for_seconds = 1},
      {.seconds = 3, .kind = ScenarioEventKind::kJoin, .workers = {"w3"}},
      {.round = 50, .kind = ScenarioEventKind::kPause, .workers = {"w1"}, .for_seconds = 1},
      {.round = 70, .kind = ScenarioEventKind::kLeave, .workers = {"w3"}},
      {.round = 80, .kind = ScenarioEventKind::kResume, .workers = {"w1"}}};
  ASSERT_EQ(Run(scenario), absl::OkStatus());
  EXPECT_EQ(record_.outcome, "finished");
  EXPECT_THAT(Happened(),
              ElementsAre("kill w2", "join w2", "join w3", "pause w1", "resume w1", "leave w3"));
  EXPECT_THAT(record_.events, SizeIs(7)) << "one that goes on already is told, and not applied";
  EXPECT_THAT(world_.Names(false), ElementsAre("w1", "w2", "w2", "w3"));
  EXPECT_THAT(world_.voters[9], UnorderedElementsAre("w1", "w2"));
  EXPECT_THAT(world_.voters[15], ElementsAre("w1"));
  EXPECT_THAT(world_.voters[45], UnorderedElementsAre("w1", "w2", "w3"));
  EXPECT_THAT(world_.voters[55], UnorderedElementsAre("w2", "w3"));
  EXPECT_THAT(world_.voters[90], UnorderedElementsAre("w1", "w2"));
  ASSERT_THAT(record_.processes, SizeIs(4));
  EXPECT_EQ(record_.processes[1].name, "w2.1");
  EXPECT_TRUE(record_.processes[1].killed);
  EXPECT_FALSE(record_.processes[3].killed);
}

TEST_F(ConductorTest, AKilledServerComesBackByTheSameCommandAfterItsTime) {
  Scenario scenario = Small();
  scenario.events = {{.round = 20, .kind = ScenarioEventKind::kServerKill},
                     {.round = 40, .kind = ScenarioEventKind::kServerKill, .for_seconds = 5}};
  ASSERT_EQ(Run(scenario), absl::OkStatus());
  std::vector<std::vector<std::string>> servers;
  for (const World::Started& process : world_.all)
    if (process.server) servers.push_back(process.command);
  ASSERT_THAT(servers, SizeIs(3));
  EXPECT_EQ(servers[0], servers[1]);
  EXPECT_EQ(servers[0], servers[2]);
  EXPECT_THAT(ValueOf(servers[0], "--journal"), EndsWith("/journal"));
  EXPECT_THAT(ValueOf(servers[0], "--workers-min"), "2");
  EXPECT_THAT(world_.Names(false), ElementsAre("w1", "w2")) << "nobody else is started again";
  EXPECT_EQ(world_.rounds, 100u);
}

TEST_F(ConductorTest, ATimeEndsTheRunInGoodOrder) {
  Scenario scenario{.seconds = 3, .workers = {"w1", "w2"}};
  scenario.events = {{.seconds = 1, .kind = ScenarioEventKind::kPause, .workers = {"w2"}}};
  ASSERT_EQ(Run(scenario), absl::OkStatus());
  EXPECT_EQ(record_.outcome, "ended");
  EXPECT_NEAR(static_cast<double>(world_.rounds), 31, 2);
  for (const World::Started& process : world_.all) {
    ASSERT_TRUE(process.end.has_value());
    EXPECT_EQ(process.end->signal, 0) << "nobody had to be killed";
  }
}

TEST_F(ConductorTest, AWorkerThatSleepsThroughTheEndIsWokenAndAskedToLeave) {
  Scenario scenario = Small();
  scenario.events = {{.round = 50, .kind = ScenarioEventKind::kPause, .workers = {"w2"}}};
  ASSERT_EQ(Run(scenario), absl::OkStatus());
  EXPECT_EQ(record_.outcome, "finished");
  const World::Started& late = world_.all[2];
  EXPECT_EQ(late.name, "w2");
  EXPECT_FALSE(late.stopped);
  EXPECT_TRUE(late.end.has_value());
  EXPECT_LT(ToSeconds(world_.Now() - Time{}), 60);
}

TEST_F(ConductorTest, CountedMinibatchesEndTheRunInGoodOrder) {
  ASSERT_EQ(Run({.minibatches = 50, .workers = {"w1", "w2"}}), absl::OkStatus());
  EXPECT_EQ(record_.outcome, "ended");
  EXPECT_EQ(world_.rounds, 25u);
}

TEST_F(ConductorTest, AStopBeforeTheFirstCommitHasNothingToReport) {
  world_.stuck = true;
  EXPECT_TRUE(absl::IsCancelled(Run(Small(), /*stop_after_rounds=*/0)));
  EXPECT_EQ(record_.outcome, "stopped");
}

TEST_F(ConductorTest, AStopEndsTheRunInGoodOrder) {
  ASSERT_EQ(Run(Small(), /*stop_after_rounds=*/12), absl::OkStatus());
  EXPECT_EQ(record_.outcome, "stopped");
  EXPECT_LT(world_.rounds, 20u);
}

TEST_F(ConductorTest, AWorkerThatEndsAsItShouldNotEndsTheRunWithItsWordsAndExitCode) {
  world_.fails = {.round = 30, .name = "w2", .code = static_cast<int>(ExitCode::kRefused)};
  const absl::Status status = Run(Small());
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kRefused);
  EXPECT_THAT(std::string(status.message()), HasSubstr("w2.1 ended by itself with exit code 4"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("/logs/w2.1.log, and ends: started"));
  EXPECT_EQ(record_.outcome, "failed");
}

TEST_F(ConductorTest, ARunThatStandsStillIsNotWaitedForForEver) {
  world_.stuck = true;
  const absl::Status status = Run(Small());
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("no commit for 30 s, after 0 rounds, with 2 workers"));
  EXPECT_LT(ToSeconds(world_.Now() - Time{}), 60);
}

TEST_F(ConductorTest, ARunOfWhichEverybodyIsAwayWaitsForThemToComeBack) {
  Scenario scenario = Small();
  scenario.events = {
      {.round = 10, .kind = ScenarioEventKind::kKill, .workers = {"w1", "w2"}, .for_seconds = 100}};
  EXPECT_EQ(Run(scenario), absl::OkStatus());
  EXPECT_EQ(world_.rounds, 100u);
}

TEST_F(ConductorTest, APortThatIsTakenIsNoneToTakeAgain) {
  world_.ports_taken = 2;
  ASSERT_EQ(Run(Small()), absl::OkStatus());
  std::set<std::string> addresses;
  for (const World::Started& process : world_.all)
    if (process.server) addresses.insert(ValueOf(process.command, "--listen"));
  EXPECT_GE(addresses.size(), 2u);
}

TEST_F(ConductorTest, ASlowedWorkerReadsItsTimeFromAFile) {
  Scenario scenario = Small();
  scenario.worker_flags["compute-ms"] = "20";
  scenario.events = {
      {.round = 10, .kind = ScenarioEventKind::kSlow, .workers = {"w2"}, .compute_ms = 300}};
  ASSERT_EQ(Run(scenario), absl::OkStatus());
  const auto& command = world_.all[2].command;
  EXPECT_THAT(command, IsSupersetOf({"--name", "w2", "--compute-ms=20"}));
  const auto text = FileSystem::Posix()->ReadFile(ValueOf(command, "--compute-ms-file"), 100);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "300");
  EXPECT_THAT(world_.all[1].command, Not(Contains("--compute-ms-file")));
}

}  // namespace
}  // namespace signvote::lab
