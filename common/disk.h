#pragma once
// A folder whose files are written in place and synced one by one, as a journal needs it. Beside
// FileSystem the only place that touches files; tests/sim has one that tears, reorders and forgets.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"

namespace signvote {

// Threads:    not thread-safe.
// Durability: what WriteAt() wrote is with the operating system; it survives a power cut once Sync()
//             has returned OK.
// Failure:    errors carry the path. After a Sync() that failed nobody knows what of the writes before
//             it is on the disk: the caller must write no more.
class DiskFile {
 public:
  virtual ~DiskFile() = default;
  // Grows the file when it ends before `offset` + data.size().
  virtual absl::Status WriteAt(uint64_t offset, std::span<const std::byte> data) = 0;
  // What was written there may begin its way to the disk, so that a later Sync() has less to wait for.
  virtual void StartWriteback(uint64_t offset, uint64_t bytes) = 0;
  virtual absl::Status Sync() = 0;
};

struct DiskEntry {
  std::string name;
  uint64_t bytes = 0;
};

// Threads: thread-safe, but for two calls about one name at the same time.
class Disk {
 public:
  virtual ~Disk() = default;
  virtual const std::string& path() const = 0;
  std::string PathOf(const std::string& name) const { return path() + "/" + name; }
  // Files of the folder, by name; folders in it are left out.
  virtual absl::StatusOr<std::vector<DiskEntry>> List() = 0;
  // A new file of `bytes` zero bytes, whose room on the disk is taken. ALREADY_EXISTS;
  // RESOURCE_EXHAUSTED: there is no room, and nothing of it is left.
  virtual absl::StatusOr<std::unique_ptr<DiskFile>> Create(const std::string& name,
                                                           uint64_t bytes) = 0;
  // For writing. NOT_FOUND.
  virtual absl::StatusOr<std::unique_ptr<DiskFile>> Open(const std::string& name) = 0;
  virtual absl::StatusOr<std::unique_ptr<MappedFile>> Map(const std::string& name) = 0;
  // Replaces a file of the new name. Survives a power cut once SyncFolder() has returned OK, as what
  // Create() and Remove() did.
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  virtual absl::Status Remove(const std::string& name) = 0;
  virtual absl::Status SyncFolder() = 0;
  // What may still be written.
  virtual absl::StatusOr<uint64_t> FreeBytes() = 0;

  // Makes the folder, for its owner alone, where it is missing.
  static absl::StatusOr<std::unique_ptr<Disk>> OpenPosix(const std::string& path);
};

}  // namespace signvote
