#pragma once
// An elastic experiment as a TOML file says it: who takes part, who comes and goes, when, and over which
// links. docs/lab.md, "Elastic experiments".

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace signvote::lab {

// As many workers as a vote counts, joiners included.
inline constexpr size_t kScenarioWorkersMax = 1023;
inline constexpr size_t kScenarioCellsMax = 1000;

// Flags of a program by name without dashes; a switch has "true" or "false".
using FlagMap = std::map<std::string, std::string>;

enum class WorkerProgram { kSynthetic, kModel };

enum class ScenarioEventKind {
  kJoin,        // a process is started
  kLeave,       // SIGTERM: it finishes its round and leaves
  kKill,        // SIGKILL
  kPause,       // SIGSTOP
  kResume,      // SIGCONT
  kServerKill,  // SIGKILL, and a start on the same port and journal
  kSlow,        // another time for a minibatch, of synthetic workers
  kLink,        // another shape of a worker's link
};
// "join", "leave", …: the words of a file.
const char* Words(ScenarioEventKind kind);

// One worker's link, both ways.
struct LinkShape {
  double rate_mbit = 0;  // 0: as fast as the machine goes
  double delay_ms = 0;   // of each way
  bool cut = false;      // nothing passes, and nobody is told
  bool operator==(const LinkShape&) const = default;
};

struct ScenarioEvent {
  // Invariant: one of the two is there.
  std::optional<uint64_t> round;  // due once so many rounds are committed
  std::optional<double> seconds;  // due so long after the first commit
  ScenarioEventKind kind = ScenarioEventKind::kKill;
  std::vector<std::string> workers;  // none with kServerKill
  // What is undone so much later: a killed worker is started again, a paused one goes on. nullopt: nothing
  // is, but a server is always started again, at once.
  std::optional<double> for_seconds;
  uint32_t compute_ms = 0;  // kSlow
  LinkShape link;           // kLink
};

// A spot market: each of the first workers lives and is absent for exponentially distributed times.
struct Churn {
  double mean_life_seconds = 0;
  double mean_absence_seconds = 0;
  double from_seconds = 0;  // nobody dies before, counted from the first commit
  double notice_seconds =
      0;  // a worker is asked to leave so long before it is killed; 0: it is not
};

struct Scenario {
  // The values that the matrix gave this one, in its order, as texts.
  std::vector<std::pair<std::string, std::string>> chosen;
  uint64_t seed = 1;
  // Invariant: at least one of the three is there.
  std::optional<uint64_t> rounds;       // main rounds after which the run ends by itself
  std::optional<double> seconds;        // after the first commit, when it is ended in good order
  std::optional<uint64_t> minibatches;  // likewise once so many were counted

  FlagMap server;
  bool journal = true;
  WorkerProgram program = WorkerProgram::kSynthetic;
  std::vector<std::string> workers;          // those at the start: w1, w2, …
  FlagMap worker_flags;                      // of all
  std::map<std::string, FlagMap> own_flags;  // of single workers, over those

  std::vector<ScenarioEvent> events;  // in the file's order
  std::optional<Churn> churn;
  // nullopt: all on loopback. Else each worker has a network namespace of its own.
  std::optional<LinkShape> links;
  std::map<std::string, LinkShape> own_links;  // over that

  // The worker's flags.
  FlagMap FlagsOf(const std::string& worker) const;
  LinkShape LinkOf(const std::string& worker) const;
  // Workers that the timeline may slow down.
  bool IsSlowed(const std::string& worker) const;
  // Those of the start and those that join later, each once.
  std::vector<std::string> AllWorkers() const;
};

// A folder's name for it, "workers.count=4,churn.mean_life=30"; "" where there is no matrix.
std::string NameOf(const Scenario& scenario);

// Every combination of the file's [matrix], the last key changing first; one scenario where it has none.
// `settings` are of --set, each "key=value" with dots in the key: they override the file, and an axis of the
// matrix. `path` is for messages.
// INVALID_ARGUMENT with exit code kUsage names line or setting, and what is accepted.
absl::StatusOr<std::vector<Scenario>> ParseScenarios(std::string_view toml, const std::string& path,
                                                     std::span<const std::string> settings);

}  // namespace signvote::lab
