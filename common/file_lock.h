#pragma once
// A lock between processes, for as long as one of them is at work: flock on a file of its own.

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace signvote {

// Ownership: holds the lock while it lives. A process that is killed lets go of it too.
// Threads:   two locks of one file exclude each other within a process as between processes.
class FileLock {
 public:
  virtual ~FileLock() = default;
  // Makes the file where it is missing; it is empty, and stays behind. FAILED_PRECONDITION: somebody else
  // holds it. Other failures as of FileSystem; all with exit code kBadInput. Where the file system has no
  // locks, it excludes nobody.
  static absl::StatusOr<std::unique_ptr<FileLock>> Take(const std::string& path);
};

}  // namespace signvote
