#pragma once
// The only place of this project that touches files. Every error carries the path and the operating
// system's words.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace signvote {

// An append-only file that replaces its target atomically. Threads: not thread-safe.
// Writers:    each has a temporary of its own, also in other processes: whichever commits last, its file
//             is whole.
// Links:      a target that is a symbolic link is followed: what it points to is replaced, the link
//             stays.
// Durability: only after Commit() returned OK does the target have the new bytes, and they survive
//             a power cut (file and folder are synced). Without Commit() the target is untouched
//             and the temporary is removed.
// Failure:    after any non-OK status every later call returns that status.
class AtomicFile {
 public:
  virtual ~AtomicFile() = default;
  virtual absl::Status Append(std::span<const std::byte> data) = 0;
  virtual absl::Status Commit() = 0;
};

// A file that only grows, for logs. Threads: not thread-safe.
// Durability: what Append() wrote is with the operating system; nothing is synced.
// Failure:    after any non-OK status every later call returns that status.
class LogFile {
 public:
  virtual ~LogFile() = default;
  // One write at the file's end, so that lines of several processes do not mix.
  virtual absl::Status Append(std::string_view text) = 0;
};

// A read-only memory map of a whole file, as long as it was when it was mapped. The view lives as
// long as the object.
class MappedFile {
 public:
  virtual ~MappedFile() = default;
  virtual std::span<const std::byte> data() const = 0;
  // The file was cut, or its disk failed, and bytes that were read since have been zeros. To be asked
  // after reading.
  virtual bool cut() const { return false; }
};

// Threads: thread-safe.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  // NOT_FOUND, PERMISSION_DENIED, or the errno's code; RESOURCE_EXHAUSTED when larger than
  // bytes_max.
  virtual absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t bytes_max) = 0;
  virtual absl::StatusOr<std::unique_ptr<MappedFile>> Map(const std::string& path) = 0;
  // Creates a temporary beside the target with `mode` (an octal permission such as 0644), under a name
  // that nobody else has: NAME.signvote-3f2a90c5d1e87b64.tmp. It is locked (flock) for as long as it is
  // written; those in the same folder that no process has locked are of writers that ended without
  // removing them, and are removed first. INVALID_ARGUMENT: the target is there and no file (a folder, a
  // device, a FIFO, a socket), which is never replaced.
  virtual absl::StatusOr<std::unique_ptr<AtomicFile>> CreateAtomic(const std::string& path,
                                                                   uint32_t mode) = 0;
  // Opens `path` for appending; creates it with `mode` when it is not there. UNAVAILABLE: a FIFO that
  // nobody reads.
  virtual absl::StatusOr<std::unique_ptr<LogFile>> OpenLog(const std::string& path,
                                                           uint32_t mode) = 0;
  // The file that CreateAtomic() would replace or make: `path`, or where its links lead in the end.
  // Failure as of CreateAtomic(). Where there are no links, `path`.
  virtual absl::StatusOr<std::string> FollowLinks(const std::string& path) { return path; }
  // Whether two names are of one file, links followed. Of files that are not there yet: whether they
  // would be. False where one of them is no file. Where there are no links, whether the names are equal.
  virtual bool IsSameFile(const std::string& a, const std::string& b) { return a == b; }
  // Calls the file `path` by a second name: what then replaces or removes `path` leaves it. Where the
  // file system has no second names, it has only the new one from now on. ALREADY_EXISTS: there is
  // something of that name. NOT_FOUND: there is no file `path`.
  virtual absl::Status AlsoCall(const std::string& path, const std::string& also);
  // Removes a file. NOT_FOUND: it is not there.
  virtual absl::Status Remove(const std::string& path) = 0;
  virtual absl::StatusOr<uint64_t> FileSize(const std::string& path) = 0;
  virtual absl::StatusOr<bool> IsDirectory(const std::string& path) = 0;
  // Regular files below `path`, recursively, sorted by path; symbolic links to files count, loops
  // do not hang.
  virtual absl::StatusOr<std::vector<std::string>> ListFiles(const std::string& path) = 0;
  virtual absl::Status MakeDirectories(const std::string& path, uint32_t mode) = 0;
  // PERMISSION_DENIED, naming path, mode and remedy ("chmod 600 PATH"), when group or others can
  // read the file; INVALID_ARGUMENT when it is none (a folder, a device, a FIFO, a socket).
  virtual absl::Status RequirePrivate(const std::string& path) = 0;
  // n unpredictable bytes for tokens, keys and run ids (getrandom).
  virtual absl::StatusOr<std::string> RandomBytes(size_t n) = 0;
  static FileSystem* Posix();
};

// "/models/" of "/models/a.st", "" of "a.st": what the names of files beside it are put behind.
std::string FolderPrefix(const std::string& path);
// "/models/a-1.st" of "/models/a.st" and "-1". A dot that begins the name begins no suffix.
std::string AddToName(const std::string& path, std::string_view added);

// OK when a file could be made at `path` now. For what a program writes only at its end, so that a
// wrong name is told at its beginning. Leaves nothing behind.
absl::Status RequireWritable(FileSystem* fs, const std::string& path);

// Writes the whole of `data` through CreateAtomic.
absl::Status WriteFileAtomically(FileSystem* fs, const std::string& path, std::string_view data,
                                 uint32_t mode);

}  // namespace signvote
