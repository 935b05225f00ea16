#pragma once
// Runs a scenario: starts its server and workers as processes of this machine, makes happen what the
// timeline says, and ends them all.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "lab/run/links.h"
#include "lab/run/processes.h"
#include "lab/run/programs.h"
#include "lab/run/round_feed.h"
#include "lab/run/run_record.h"
#include "lab/run/scenario.h"
#include "lab/run/timeline.h"

namespace signvote::lab {

// What a conductor touches. Threads: as its members.
struct ConductorHost {
  FileSystem* fs = nullptr;
  Clock* clock = nullptr;
  Processes* processes = nullptr;
  // Waits for so long; true: a stop was asked for.
  std::function<bool(Duration)> wait;
  // One line for people, whenever something happens.
  std::function<void(const std::string&)> tell;
};

struct ConductorOptions {
  ProgramPaths programs;
  // Without a commit for so long, while somebody is there to vote, a run has failed.
  Duration patience = std::chrono::minutes(3);
};

// One run of one scenario.
// Threads:  not thread-safe; everything happens in Run(), which blocks.
// Failure:  UNAVAILABLE or DEADLINE_EXCEEDED say which process ended, or is waited for in vain, and where its log
//           is; a server's own exit code is kept. Processes that still run are killed by whoever owns `processes`.
class Conductor {
 public:
  // The folder is there, and nothing of another run in it.
  Conductor(ConductorHost host, ConductorOptions options, Scenario scenario, RunFolder folder);
  ~Conductor();

  absl::Status Run();
  // What happened, also where Run() failed.
  const RunRecord& record() const { return record_; }

 private:
  struct Worker;

  absl::Status Begin();
  absl::Status Loop();
  absl::Status StartServer();
  absl::Status WaitUntilListening();
  absl::Status ReturnServer();
  absl::Status StartWorker(const std::string& name);
  absl::Status Apply(const TimelineAction& action);
  absl::Status ApplyToWorker(const TimelineAction& action);
  absl::Status KillServer(double for_seconds);
  absl::Status LookAtServer();
  absl::Status LookAtWorkers();
  absl::Status LookAtPatience();
  // The run's end: by itself, and by us.
  absl::Status WaitForLateWorkers();
  absl::Status WaitForWorkers(const std::string& why);
  absl::Status EndInOrder();
  absl::Status Control(const std::vector<std::string>& words, std::string* said);
  absl::Status WaitFor(const std::string& what, Duration most, const std::function<bool()>& done);

  void Note(ScenarioEventKind kind, const std::string& worker, const std::string& words,
            bool applied = true);
  absl::Status EndedBadly(const std::string& process, const ProcessEnd& end) const;
  double UnixSeconds() const;
  double Elapsed() const;  // seconds since the first commit
  size_t Alive() const;

  const ConductorHost host_;
  const ConductorOptions options_;
  const Scenario scenario_;
  const RunFolder folder_;
  Timeline timeline_;
  RoundFeed feed_;
  std::unique_ptr<LinkedHosts> links_;  // null: loopback
  ServerPlace place_;
  struct {
    std::optional<int64_t> id;  // nullopt: it was killed
    uint32_t starts = 0;
    std::optional<Time> due;  // when it is started again
    bool over = false;        // it ended by itself
  } server_;
  std::map<std::string, Worker> workers_;
  std::optional<Time> first_commit_;
  Time progress_;  // when the last commit was seen, or something that resets patience
  // The first worker that ended as it should not, and until when the server may explain it.
  absl::Status failure_;
  Time failure_until_;
  RunRecord record_;
};

}  // namespace signvote::lab
