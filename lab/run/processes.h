#pragma once
// Child processes, as an experiment needs them: started, signalled, reaped, and none left behind.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace signvote::lab {

struct ProcessEnd {
  int code = 0;    // exit status; 0 where a signal ended it
  int signal = 0;  // that ended it; 0: it ended by itself
};

// Threads: not thread-safe.
class Processes {
 public:
  virtual ~Processes() = default;
  // Starts a program by its path, or by its name in PATH. What it prints is appended to the file
  // `log_path`; its input is empty, and Ctrl-C does not reach it. UNAVAILABLE: it cannot be started, which a
  // program that is not there also shows by ending with exit code 127.
  virtual absl::StatusOr<int64_t> Start(const std::vector<std::string>& command,
                                        const std::string& log_path) = 0;
  // Does nothing to one that has ended.
  virtual void Signal(int64_t id, int signal) = 0;
  // nullopt: it still runs. REQUIRES: Start() returned `id`.
  virtual std::optional<ProcessEnd> Ended(int64_t id) = 0;

  // The operating system's. Its destructor kills and reaps what still runs; the kernel does when this
  // process ends any other way.
  static std::unique_ptr<Processes> Posix();
};

// "exit code 3", "signal 9".
std::string EndText(const ProcessEnd& end);

}  // namespace signvote::lab
