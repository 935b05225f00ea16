#pragma once
// What a worker's file of its replica says of the run that it is of, beside where it comes from
// (common/export_metadata.h): with it a server goes on with the run. Keys: docs/models.md, "What is
// written".
//
// Threads: pure functions.

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/ids.h"

namespace signvote {

// Of the fp32 replica that the file holds, in hexadecimal digits.
inline constexpr char kDigestKey[] = "signvote.digest";

// The parameters that a run started with: a file of their own in the same folder, and their digest.
struct SavedX0 {
  std::string file;  // its name, without a folder
  uint64_t digest = 0;
  bool operator==(const SavedX0&) const = default;
};

struct SavedRun {
  // As the server said them; only a server reads them (server/run/run_save.h).
  std::string head;           // what stays the same over the run
  std::string after;          // where it stands
  uint64_t digest = 0;        // of the replica
  std::optional<SavedX0> x0;  // while the run's rule needs them
  // Where the file itself says that the replica stands.
  RunId run_id;
  Round round;

  bool operator==(const SavedRun&) const = default;
};

// REQUIRES: the metadata are those of ExportMetadata(), of the same run and round.
void AddSavedRun(const SavedRun& run, std::map<std::string, std::string>* metadata);

// nullopt: the file says nothing of its run. DATA_LOSS: what it says is not what AddSavedRun() wrote.
absl::StatusOr<std::optional<SavedRun>> SavedRunOf(
    const std::map<std::string, std::string>& metadata);

// /models/a.safetensors: /models/a.x0.safetensors
std::string X0PathOf(const std::string& path);

}  // namespace signvote
