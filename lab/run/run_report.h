#pragma once
// What came of a run, from its logs: report.json, CSV files. docs/lab.md, "Elastic experiments".

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "lab/run/run_record.h"

namespace signvote::lab {

// A replica's digest, of all commits before `round`.
struct ReplicaState {
  uint64_t round = 0;
  std::string digest;  // 16 hexadecimal digits
  bool operator==(const ReplicaState&) const = default;
};

struct RunInputs {
  std::string name;                                         // of the combination; "": the only one
  std::vector<std::pair<std::string, std::string>> chosen;  // of the matrix
  RunRecord record;
  std::string round_log;                              // of the server, all its processes' lines
  std::map<std::string, std::string> worker_logs;     // round logs, by process
  std::map<std::string, std::string> worker_reports;  // by process; empty: it left none
  std::optional<ReplicaState> server;                 // nullopt: it left no model
};

// One committed round.
struct RoundPoint {
  uint64_t round = 0, main_rounds = 0;
  double unix_seconds = 0;
  double seconds = 0;  // of its commit, since the first round was opened
  double round_seconds = 0, wait_seconds = 0;
  double loss = 0;  // NaN: none is known
  double stepsize = 0;
  uint64_t bytes_up = 0, bytes_down = 0;  // so far, over all the server's processes
  uint64_t minibatches = 0;               // whose ballots were counted, so far
  uint32_t members = 0, voters = 0;
};

// A held-out loss, as one of the workers measured it.
struct HeldOutPoint {
  uint64_t round = 0;        // of all commits before it
  uint64_t minibatches = 0;  // counted by then
  double loss = 0, error = 0;
};

struct ReportEvent {
  std::string
      kind;  // joined, left, worker_killed, paused, resumed, server_killed, slowed, link_changed
  std::string worker;
  uint64_t round = 0;                            // committed by then
  double seconds = 0;                            // since the first round was opened
  std::optional<double> seconds_to_next_commit;  // nullopt: there was none
  std::optional<double>
      seconds_to_first_ballot;  // of one that joined, to the commit that counted it
};

struct RunReport {
  std::string name, outcome;
  std::vector<std::pair<std::string, std::string>> chosen;
  uint64_t rounds = 0, main_rounds = 0;
  uint64_t unlogged_rounds = 0;  // committed, and in no line: their server was killed first
  double seconds = 0;            // from the first round's opening to the last commit
  uint64_t lost_commits = 0;     // rounds that were committed, and had to be once more
  bool replicas_equal = false;
  std::map<std::string, std::string> digests;  // "server" and workers that were there at the end
  uint64_t minibatches_computed = 0, minibatches_counted = 0;
  double work_kept = 0;  // minibatches whose ballots were counted whole / minibatches computed
  double counted_seconds = 0;  // of computing what was counted
  double process_seconds = 0;  // of all workers' processes
  double goodput = 0;          // counted_seconds / process_seconds
  double wait_share = 0;       // of the rounds' time
  std::vector<ReportEvent> events;
  std::vector<RoundPoint> points;
  std::vector<HeldOutPoint> held_out;  // in order of round
};

// INVALID_ARGUMENT: the round log has no round.
absl::StatusOr<RunReport> MakeRunReport(const RunInputs& inputs);

// report.json.
std::string ReportJson(const RunReport& report);
// Of several: {"runs": [...]}, without their points.
std::string ReportsJson(const std::vector<RunReport>& reports);
std::string RoundsCsv(const RunReport& report);
std::string EventsCsv(const RunReport& report);

}  // namespace signvote::lab
