// Goal:   children are started with their own log and signals, reaped with how they ended, and none outlives its owner;
//         and the commands of a scenario are those that its programs take.
#include "lab/run/processes.h"

#include <signal.h>

#include <optional>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/clock.h"
#include "common/file_system.h"
#include "lab/run/programs.h"
#include "tests/support/temp_dir.h"

namespace signvote::lab {
namespace {

using testing::HasSubstr;

// Waits for its end, for ten seconds.
std::optional<ProcessEnd> EndOf(Processes* processes, int64_t id) {
  Clock* const clock = Clock::System();
  for (int tries = 0; tries < 2000; ++tries) {
    if (const auto end = processes->Ended(id)) return end;
    clock->SleepFor(std::chrono::milliseconds(5));
  }
  return std::nullopt;
}

class ProcessesTest : public testing::Test {
 protected:
  std::string Read(const std::string& name) {
    const auto text = FileSystem::Posix()->ReadFile(folder_ / name, 1 << 16);
    return text.ok() ? *text : "";
  }

  TempDir folder_;
};

TEST_F(ProcessesTest, AChildEndsWithItsCodeAndItsWordsAreInItsLog) {
  const auto processes = Processes::Posix();
  const auto id = processes->Start({"sh", "-c", "echo \"$0\" out; echo err >&2; exit 3", "a word"},
                                   folder_ / "log");
  ASSERT_TRUE(id.ok()) << id.status();
  const auto end = EndOf(processes.get(), *id);
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(end->code, 3);
  EXPECT_EQ(EndText(*end), "exit code 3");
  EXPECT_EQ(Read("log"), "a word out\nerr\n");
  EXPECT_TRUE(processes->Ended(*id).has_value()) << "it may be asked for again";
  processes->Signal(*id, SIGKILL);  // whose number may be another's by now
}

TEST_F(ProcessesTest, AProgramThatIsNotThereSaysSo) {
  const auto processes = Processes::Posix();
  const auto id = processes->Start({folder_ / "nothing"}, folder_ / "log");
  ASSERT_TRUE(id.ok()) << id.status();
  const auto end = EndOf(processes.get(), *id);
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(end->code, 127);
  EXPECT_THAT(Read("log"), HasSubstr("/nothing cannot be started: No such file"));
}

TEST_F(ProcessesTest, AnOwnerLeavesNobodyBehind) {
  auto processes = Processes::Posix();
  const auto id = processes->Start({"sleep", "600"}, folder_ / "log");
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_FALSE(processes->Ended(*id).has_value());
  ASSERT_EQ(::kill(static_cast<pid_t>(*id), 0), 0);
  processes.reset();
  EXPECT_NE(::kill(static_cast<pid_t>(*id), 0), 0);
}

TEST_F(ProcessesTest, ASignalEndsAChildThatTheOwnerIgnoresItFor) {
  ::signal(SIGTERM, SIG_IGN);
  const auto processes = Processes::Posix();
  const auto id = processes->Start({"sleep", "600"}, folder_ / "log");
  ::signal(SIGTERM, SIG_DFL);
  ASSERT_TRUE(id.ok()) << id.status();
  // Until it has become the program it may still ignore it.
  std::optional<ProcessEnd> end;
  for (int tries = 0; tries < 1000 && !end.has_value(); ++tries) {
    processes->Signal(*id, SIGTERM);
    Clock::System()->SleepFor(std::chrono::milliseconds(5));
    end = processes->Ended(*id);
  }
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(end->signal, SIGTERM);
}

TEST(ProgramsTest, ADryRunHasEveryCommandAndWhatHappensWhen) {
  Scenario scenario{.seed = 5,
                    .rounds = 100,
                    .server = {{"rule", "fixed"}, {"length-unknown", "true"}},
                    .workers = {"w1", "w2"},
                    .worker_flags = {{"compute-ms", "20"}},
                    .own_flags = {{"w2", {{"config", "{\"a\": 'b'}"}}}}};
  scenario.events = {
      {.round = 10, .kind = ScenarioEventKind::kKill, .workers = {"w1"}, .for_seconds = 2},
      {.seconds = 3, .kind = ScenarioEventKind::kJoin, .workers = {"w3"}},
      {.round = 20, .kind = ScenarioEventKind::kServerKill},
      {.round = 30,
       .kind = ScenarioEventKind::kLink,
       .workers = {"w2"},
       .link = {.rate_mbit = 10}}};
  scenario.churn = Churn{.mean_life_seconds = 60, .mean_absence_seconds = 20};
  const std::string text = CommandsForMachines(scenario);
  for (const char* const part :
       {"signvote certs tls --server-name $SERVER --worker w1 --worker w2 --worker w3\n",
        "signvote-server --listen 0.0.0.0:7070 --tls-ca tls/ca.crt", "--journal journal",
        "--max-rounds 100 --seed 5 --workers-min 2 --length-unknown --rule=fixed\n",
        "signvote-synthetic-worker --server $SERVER:7070 --name w1 --token-file "
        "tls/workers/w1/token",
        "--compute-ms=20 '--config={\"a\": '\\''b'\\''}'\n",
        "# later: signvote-synthetic-worker --server $SERVER:7070 --name w3",
        "# after 10 rounds: w1: kill -KILL the signvote-synthetic-worker, for 2.0 s\n",
        "# 3.0 s after the first commit: start w3", "# after 20 rounds: server: kill -KILL",
        "# after 30 rounds: w2: a link of 10 Mbit/s", " s  kill w", " s  join w"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
}

}  // namespace
}  // namespace signvote::lab
