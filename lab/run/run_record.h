#pragma once
// What was done in a run, and by whom: the half of its report that no log has.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lab/run/scenario.h"

namespace signvote::lab {

struct RecordedEvent {
  ScenarioEventKind kind = ScenarioEventKind::kKill;
  std::string worker;  // empty: the server
  double unix_seconds = 0;
  uint64_t round = 0;   // committed rounds
  bool applied = true;  // false: there was nothing to do it to
};

// One process of a worker.
struct RecordedProcess {
  std::string name;  // "w3.2", the second of worker w3
  std::string worker;
  double start_unix_seconds = 0;
  std::optional<double> end_unix_seconds;  // nullopt: it was still there
  bool killed = false;                     // on purpose
  int exit_code = 0;                       // of one that was not
};

struct RunRecord {
  std::string outcome =
      "failed";  // "finished": it ended by itself; "ended": by its time or its minibatches; "stopped": by a signal
  double start_unix_seconds = 0;
  std::vector<RecordedEvent> events;  // in time
  std::vector<RecordedProcess> processes;
};

}  // namespace signvote::lab
