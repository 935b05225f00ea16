#pragma once
// What an exported safetensors file says of itself, whichever program wrote it, and what the next run
// takes from it. Keys: docs/models.md, "What is written".

#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/vote_terms.h"

namespace signvote {

// Where the parameters come from.
struct ExportOrigin {
  RunId run_id;
  Round round;       // they hold all commits before it
  std::string rule;  // who chose the stepsize, as --rule
  // at which the run stood (LastStepsize), or, before that is known, went on from; nullopt: nowhere
  std::optional<float> stepsize;
};

// The file's metadata.
std::map<std::string, std::string> ExportMetadata(const ExportOrigin& origin);

// The stepsize at which ALIAS stood in the run that wrote the file with this metadata. nullopt: no run
// did, another rule chose it (the end of a schedule says nothing of the model), or it was not known.
// INVALID_ARGUMENT: it is no stepsize; names the key and the remedy.
absl::StatusOr<std::optional<float>> AliasStepsizeOf(
    const std::map<std::string, std::string>& metadata);

// The stepsize at which a run stands, for who sees its commits go by.
//
// Threads: thread-compatible.
class LastStepsize {
 public:
  // The next commit.
  void Note(CommitKind kind, float stepsize);
  // The last one that was seen. nullopt: it has not changed since the first. That with which ALIAS
  // begins says nothing of the model, and a run that took it for more would hardly move.
  std::optional<float> value() const;

 private:
  float first_ = 0, last_ = 0;  // 0: none was seen
  bool changed_ = false;
};

}  // namespace signvote
