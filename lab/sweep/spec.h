#pragma once
// What to sweep, as a TOML file says it, and the runs that follow from it. docs/lab.md, "Sweeps".

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "lab/tasks/task.h"

namespace signvote::lab {

// Runs that differ by seed, and by stepsize where that is tuned.
struct CellGroup {
  std::string task, direction, rule, aggregate;  // as the file calls them
  std::string local_steps = "1";                 // likewise: a number, or the name of a schedule
  uint32_t workers = 1;
  std::vector<uint64_t> seeds;  // of its runs, at least one
  TaskOptions task_options;     // its seeds are those of the run
  uint32_t accumulate = 1;
  // Of signvote-server, by name without dashes; a switch has "true" or "false".
  std::map<std::string, std::string> flags;
  std::string inputs;  // of NameInputs(); a part of SweepCell::id
  // The middle of the grid over --stepsize. Invariant: it is there where rule is fixed and no stepsize is
  // given, and nowhere else.
  std::optional<double> grid;
};

struct SweepSpec {
  std::vector<CellGroup> groups;  // no two of the same columns
  std::string program;            // of NameInputs(): the column `program`
};

// One run.
struct SweepCell {
  size_t group = 0;  // of the spec
  uint64_t seed = 0;
  std::optional<double> stepsize;  // of a grid, or given; nullopt: the rule's
  std::vector<std::string> flags;  // for ReadRunFlags()
  // 16 hexadecimal digits of what the run is called and of everything that says what is computed, also
  // what is in its files and by which program: results of equal ones are equal, and in the same row.
  std::string id;
};

// INVALID_ARGUMENT with exit code kUsage names line or key and what is accepted. `path` is for messages.
absl::StatusOr<SweepSpec> ParseSweep(std::string_view toml, const std::string& path);

// The run of this group, seed and step of the grid (plan.h; not read where nothing is tuned).
SweepCell CellOf(const SweepSpec& spec, size_t group, uint64_t seed, int grid_step);

}  // namespace signvote::lab
