#pragma once
// A log file for programs, one JSON object per line, behind a queue: whoever writes never waits for
// the disk.

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/line_sink.h"
#include "common/line_writer.h"

namespace signvote {

// Threads:  thread-safe. Lines are written by an internal thread.
// Rotation: a file that was renamed is left for the one that has its name now by Reopen(); one that
//           was copied and truncated needs nothing: every write is at the file's end.
// Failure:  lines that a slow disk cannot take are dropped and counted, and a line says how many;
//           the first write that fails is logged once, and the run goes on without that log, until
//           Reopen() begins it anew.
class LineLog final : public LineSink {
 public:
  // NOT_FOUND, PERMISSION_DENIED, UNAVAILABLE: `path` cannot be opened for appending.
  static absl::StatusOr<std::unique_ptr<LineLog>> Open(FileSystem* fs, const std::string& path);

  bool Write(std::string line) override;
  uint64_t dropped() const override { return writer_.dropped(); }
  // The next line goes to the file that has the path then. When that cannot be opened, the log says
  // so and the old file stays in use.
  void Reopen();

 private:
  struct Target;
  explicit LineLog(std::shared_ptr<Target> target);

  const std::shared_ptr<Target> target_;  // with the writer's thread, which a hung disk may keep
  LineWriter writer_;
};

}  // namespace signvote
