#pragma once
// What stands under the name of a model that is about to be written, and what becomes of it.
//
// A model of the same run is replaced. One of another run stays: as NAME.earlier-1.EXT (-2, -3, …) beside
// the new one, so that a run which is begun again, by mistake or by a service, costs no model that the
// run before has trained. kEarlierRunsMax of them are kept, the oldest under the lowest number; when one
// more comes, the one of the fewest rounds goes, of equals the oldest. What is of no run, such as another
// program's model, is kept in the same way and never goes. docs/models.md, "What is written".

#include <cstddef>
#include <map>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"

namespace signvote {

inline constexpr size_t kEarlierRunsMax = 3;

// Tells an index of ours: all files that it names were written by signvote.
inline constexpr char kIndexMark[] = "signvote.index";

// PATH.index.json
std::string ShardIndexPath(const std::string& path);

// What stands at ShardIndexPath(path).
struct StandingIndex {
  bool there = false;
  bool ours = false;
  // Of ours:
  std::set<std::string> files;  // their names
  std::map<std::string, std::string> metadata;
};
StandingIndex ReadStandingIndex(FileSystem* fs, const std::string& path);

// OK when a model could replace what is called `path`: there is no index of shards that signvote did
// not write, whose model would be lost or hidden. FAILED_PRECONDITION names it. Exit code kBadInput.
absl::Status RequireOwnIndex(FileSystem* fs, const std::string& path);
absl::Status ForeignIndex(const std::string& path);

// Removes the model called `path`, whole or in shards. NOT_FOUND: there is none.
absl::Status RemoveModel(FileSystem* fs, const std::string& path);

// Before `path` or its index is replaced by a model with this metadata: keeps what is not of its run
// (signvote.run_id). What stands under either name stays there until it is replaced, but on a file system
// without second names. A call after an attempt that failed keeps nothing twice.
// `index_kept`: the shards of the index that stood there are the kept model's from now on.
// Failure: FAILED_PRECONDITION, no name is left for it; what the disk does. Exit code kBadInput.
struct KeptEarlier {
  bool index_kept = false;
};
absl::StatusOr<KeptEarlier> KeepEarlierModels(FileSystem* fs, const std::string& path,
                                              const std::map<std::string, std::string>& metadata);

}  // namespace signvote
