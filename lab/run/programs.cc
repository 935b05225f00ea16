#include "lab/run/programs.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/program_beside.h"
#include "common/status.h"
#include "lab/run/timeline.h"

namespace signvote::lab {
namespace {

// Everywhere in a network of the run's own: workers come by its address, and the operator by loopback, from where
// alone the server takes an operator's calls without TLS.
constexpr const char* kAnywhere = "0.0.0.0";
// Of a run that only a time ends.
constexpr uint64_t kEndlessRounds = 1'000'000;

void AddFlags(const FlagMap& flags, std::vector<std::string>* command) {
  for (const auto& [name, value] : flags) {
    // So that whoever reads the flags says whether it is a switch.
    command->push_back(value == "true" ? absl::StrCat("--", name)
                                       : absl::StrCat("--", name, "=", value));
  }
}

void AddRun(const Scenario& scenario, std::vector<std::string>* command) {
  command->insert(command->end(),
                  {"--max-rounds", absl::StrCat(scenario.rounds.value_or(kEndlessRounds)), "--seed",
                   absl::StrCat(scenario.seed)});
  if (!scenario.server.contains("workers-min"))
    command->insert(command->end(), {"--workers-min", absl::StrCat(scenario.workers.size())});
  AddFlags(scenario.server, command);
}

// Set by whoever types the commands.
constexpr std::string_view kServerVariable = "$SERVER";

// As a shell takes it.
std::string Quoted(const std::string& word) {
  const bool plain = !word.empty() && word.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                          "0123456789-_=./:,@%+") == std::string::npos;
  return plain || word.starts_with(kServerVariable)
             ? word
             : absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
}

std::string Line(const std::vector<std::string>& command) {
  return absl::StrJoin(command, " ", [](std::string* out, const std::string& word) {
    absl::StrAppend(out, Quoted(word));
  });
}

std::string WhenText(const ScenarioEvent& event) {
  return event.round.has_value() ? absl::StrCat("after ", *event.round, " rounds")
                                 : absl::StrFormat("%.1f s after the first commit", *event.seconds);
}

std::string WhatText(const ScenarioEvent& event, const std::string& program) {
  const std::string who = absl::StrJoin(event.workers, ", ");
  const std::string undone =
      event.for_seconds.has_value() ? absl::StrFormat(", for %.1f s", *event.for_seconds) : "";
  switch (event.kind) {
    case ScenarioEventKind::kJoin:
      return absl::StrCat("start ", who, " (its command is above)");
    case ScenarioEventKind::kLeave:
      return absl::StrCat(who, ": kill -TERM the ", program, undone);
    case ScenarioEventKind::kKill:
      return absl::StrCat(who, ": kill -KILL the ", program, undone);
    case ScenarioEventKind::kPause:
      return absl::StrCat(who, ": kill -STOP the ", program, undone);
    case ScenarioEventKind::kResume:
      return absl::StrCat(who, ": kill -CONT the ", program);
    case ScenarioEventKind::kServerKill:
      return absl::StrCat("server: kill -KILL the signvote-server", undone,
                          ", and start it again by the same command");
    case ScenarioEventKind::kSlow:
      return absl::StrCat(who, ": ", event.compute_ms, " ms a minibatch, into --compute-ms-file");
    case ScenarioEventKind::kLink:
      if (event.link.cut) return absl::StrCat(who, ": pull the cable");
      return absl::StrFormat("%s: a link of %g Mbit/s (0: unshaped) with a delay of %g ms", who,
                             event.link.rate_mbit, event.link.delay_ms);
  }
  return "";
}

// The deaths and returns of a churn, as far as the run's time is known.
std::string ChurnText(const Scenario& scenario) {
  constexpr double kStep = 0.1, kUnbounded = 600;
  Scenario only = scenario;
  only.events.clear();
  Timeline timeline(only);
  const double until = scenario.seconds.value_or(kUnbounded);
  std::string text;
  const auto steps = static_cast<uint64_t>(std::min(until, kUnbounded) / kStep);
  for (uint64_t step = 0; step <= steps; ++step) {
    const double at = static_cast<double>(step) * kStep;
    for (const TimelineAction& action : timeline.Due(0, at))
      absl::StrAppend(&text,
                      absl::StrFormat("# %7.1f s  %s %s\n", at, Words(action.kind), action.worker));
  }
  return text;
}

}  // namespace

ProgramPaths ProgramPaths::Beside() {
  return {.server = ProgramBeside("signvote-server"),
          .worker = ProgramBeside("signvote-worker"),
          .synthetic = ProgramBeside("signvote-synthetic-worker"),
          .control = ProgramBeside("signvote")};
}

const std::string& ProgramPaths::WorkerOf(const Scenario& scenario) const {
  return scenario.program == WorkerProgram::kModel ? worker : synthetic;
}

std::string ServerPlace::Address() const { return absl::StrCat(host, ":", port); }

std::vector<std::string> ServerCommand(const Scenario& scenario, const ProgramPaths& programs,
                                       const RunFolder& folder, const ServerPlace& place) {
  std::vector<std::string> command = {
      programs.server, "--insecure",
      "--listen",      place.loopback ? place.Address() : absl::StrCat(kAnywhere, ":", place.port),
      "--http",        "off",
      "--port-file",   folder.Ports(),
      "--round-log",   folder.RoundLog(),
      "--event-log",   folder.EventLog(),
      "--export",      folder.Model()};
  if (!place.loopback) command.insert(command.end(), {"--insecure-bind", kAnywhere});
  if (scenario.journal) command.insert(command.end(), {"--journal", folder.Journal()});
  AddRun(scenario, &command);
  return command;
}

std::vector<std::string> WorkerCommand(const Scenario& scenario, const ProgramPaths& programs,
                                       const RunFolder& folder, const ServerPlace& place,
                                       const std::string& worker, const std::string& process) {
  std::vector<std::string> command = {programs.WorkerOf(scenario),
                                      "--insecure",
                                      "--server",
                                      place.Address(),
                                      "--name",
                                      worker,
                                      "--report",
                                      folder.WorkerReport(process),
                                      "--round-log",
                                      folder.WorkerLog(process)};
  if (scenario.program == WorkerProgram::kModel)
    command.insert(command.end(), {"--http", "off", "--progress", "off"});
  if (scenario.IsSlowed(worker))
    command.insert(command.end(), {"--compute-ms-file", folder.ComputeFile(worker)});
  AddFlags(scenario.FlagsOf(worker), &command);
  return command;
}

std::vector<std::string> ControlCommand(const ProgramPaths& programs, const ServerPlace& place,
                                        const std::vector<std::string>& words) {
  std::vector<std::string> command = {programs.control, "--insecure", "--server",
                                      absl::StrCat("127.0.0.1:", place.port)};
  command.insert(command.end(), words.begin(), words.end());
  return command;
}

std::string CommandsForMachines(const Scenario& scenario) {
  const ProgramPaths programs;
  const std::vector<std::string> workers = scenario.AllWorkers();
  const std::string& program = programs.WorkerOf(scenario);
  std::string text;
  if (!scenario.chosen.empty()) absl::StrAppend(&text, "# ", NameOf(scenario), "\n");
  absl::StrAppend(&text, "# once, anywhere; tls/workers/NAME goes to that worker's machine\n");
  std::vector<std::string> certs = {programs.control, "certs", "tls", "--server-name", "$SERVER"};
  for (const std::string& worker : workers) certs.insert(certs.end(), {"--worker", worker});
  absl::StrAppend(&text, Line(certs), "\n\n# on the server\n");
  std::vector<std::string> server = {programs.server,  "--listen",         "0.0.0.0:7070",
                                     "--tls-ca",       "tls/ca.crt",       "--tls-certificate",
                                     "tls/server.crt", "--tls-key",        "tls/server.key",
                                     "--tokens",       "tls/tokens",       "--round-log",
                                     "rounds.jsonl",   "--event-log",      "server_events.jsonl",
                                     "--export",       "model.safetensors"};
  if (scenario.journal) server.insert(server.end(), {"--journal", "journal"});
  AddRun(scenario, &server);
  absl::StrAppend(&text, Line(server), "\n\n# on the workers\n");
  for (const std::string& worker : workers) {
    const std::string tls = absl::StrCat("tls/workers/", worker);
    std::vector<std::string> command = {program,
                                        "--server",
                                        "$SERVER:7070",
                                        "--name",
                                        worker,
                                        "--token-file",
                                        tls + "/token",
                                        "--tls-ca",
                                        tls + "/ca.crt",
                                        "--tls-certificate",
                                        tls + "/worker.crt",
                                        "--tls-key",
                                        tls + "/worker.key",
                                        "--report",
                                        worker + ".report.json",
                                        "--round-log",
                                        worker + ".rounds.jsonl"};
    if (scenario.IsSlowed(worker))
      command.insert(command.end(), {"--compute-ms-file", worker + ".compute_ms"});
    AddFlags(scenario.FlagsOf(worker), &command);
    const bool later = std::find(scenario.workers.begin(), scenario.workers.end(), worker) ==
                       scenario.workers.end();
    absl::StrAppend(&text, later ? "# later: " : "", Line(command), "\n");
  }
  if (!scenario.events.empty() || scenario.churn.has_value())
    absl::StrAppend(&text, "\n# what happens\n");
  for (const ScenarioEvent& event : scenario.events)
    absl::StrAppend(&text, "# ", WhenText(event), ": ", WhatText(event, program), "\n");
  if (scenario.churn.has_value()) absl::StrAppend(&text, ChurnText(scenario));
  const char* const ending = "signvote pause, then kill -TERM of all workers, and of the server";
  if (scenario.seconds.has_value())
    absl::StrAppend(
        &text, absl::StrFormat("# %.1f s after the first commit: %s\n", *scenario.seconds, ending));
  if (scenario.minibatches.has_value())
    absl::StrAppend(&text, "# after ", *scenario.minibatches,
                    " minibatches that are counted: ", ending, "\n");
  return text;
}

}  // namespace signvote::lab
