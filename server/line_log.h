#pragma once
// A log file for programs, one JSON object per line, behind a queue: whoever writes never waits for
// the disk.

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/line_writer.h"
#include "server/run/run_log.h"

namespace signvote {

// Threads: thread-safe. Lines are written by an internal thread.
// Failure: lines that a slow disk cannot take are dropped and counted, and a line says how many;
//          the first write that fails is logged once, and the run goes on without that log.
class LineLog final : public run::LineSink {
 public:
  // NOT_FOUND, PERMISSION_DENIED: `path` cannot be opened for appending.
  static absl::StatusOr<std::unique_ptr<LineLog>> Open(FileSystem* fs, const std::string& path);

  bool Write(std::string line) override;
  uint64_t dropped() const override { return writer_.dropped(); }

 private:
  LineLog(std::unique_ptr<LogFile> file, std::string path);

  LineWriter writer_;
};

}  // namespace signvote
