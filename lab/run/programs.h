#pragma once
// The commands that a scenario stands for: those that are run here, and those for machines of one's own.

#include <string>
#include <vector>

#include "lab/run/scenario.h"

namespace signvote::lab {

struct ProgramPaths {
  std::string server = "signvote-server";
  std::string worker = "signvote-worker";
  std::string synthetic = "signvote-synthetic-worker";
  std::string control = "signvote";

  // Those in this program's own folder.
  static ProgramPaths Beside();
  const std::string& WorkerOf(const Scenario& scenario) const;
};

// Files of a run in its folder.
struct RunFolder {
  std::string path;

  std::string Ports() const { return path + "/ports.json"; }
  std::string RoundLog() const { return path + "/rounds.jsonl"; }
  std::string EventLog() const { return path + "/server_events.jsonl"; }
  std::string Model() const { return path + "/model.safetensors"; }
  std::string Journal() const { return path + "/journal"; }
  // Of the process "w3.2", the second of worker w3; "server.1".
  std::string Log(const std::string& process) const { return path + "/logs/" + process + ".log"; }
  std::string WorkerLog(const std::string& process) const {
    return path + "/workers/" + process + ".rounds.jsonl";
  }
  std::string WorkerReport(const std::string& process) const {
    return path + "/workers/" + process + ".report.json";
  }
  std::string ComputeFile(const std::string& worker) const {
    return path + "/workers/" + worker + ".compute_ms";
  }
};

// Where the server listens: HOST:PORT, without TLS, since nobody else can reach it.
struct ServerPlace {
  std::string host = "127.0.0.1";
  uint16_t port = 0;
  bool loopback = true;  // else a network of this run's own

  std::string Address() const;
};

std::vector<std::string> ServerCommand(const Scenario& scenario, const ProgramPaths& programs,
                                       const RunFolder& folder, const ServerPlace& place);
// `process`: "w3.2".
std::vector<std::string> WorkerCommand(const Scenario& scenario, const ProgramPaths& programs,
                                       const RunFolder& folder, const ServerPlace& place,
                                       const std::string& worker, const std::string& process);
// `signvote` with these words, to the server at `place`; to be run on its host.
std::vector<std::string> ControlCommand(const ProgramPaths& programs, const ServerPlace& place,
                                        const std::vector<std::string>& words);

// What a person would type on machines of their own, with TLS, and when: text for a terminal.
std::string CommandsForMachines(const Scenario& scenario);

}  // namespace signvote::lab
