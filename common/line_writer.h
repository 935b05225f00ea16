#pragma once
// Lines on their way to something slow (a terminal, a pipe that nobody reads, a full disk), so that
// those who write them never wait for it.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "common/clock.h"

namespace signvote {

// Ownership:  owns its thread and the sink. A sink that hangs is left behind with its thread by the
//             destructor, which waits for it at most `patience`.
// Threads:    thread-safe. The sink runs on the internal thread, one call at a time, and may wait.
// Failure:    a line that finds the queue full is dropped and counted. One that says how many were
//             lost stands in their place.
// Invariants: lines keep their order; at most lines_max lines and bytes_max bytes are queued.
class LineWriter {
 public:
  struct Options {
    size_t lines_max = 4096;
    size_t bytes_max = size_t{1} << 20;
    Duration patience = std::chrono::seconds(1);
  };
  // Takes one or more whole lines, each with its newline.
  using Sink = std::function<void(std::string_view lines)>;
  // The line, with its newline, that stands for `count` lost ones.
  using DroppedLine = std::function<std::string(uint64_t count)>;

  LineWriter(Sink sink, DroppedLine dropped_line, Options options);
  // What is queued is written first, as long as the sink takes it within `patience`.
  ~LineWriter();
  LineWriter(const LineWriter&) = delete;
  LineWriter& operator=(const LineWriter&) = delete;

  // `line` ends with a newline, or is a piece of a terminal's that stands by itself. Never waits. False:
  // it is lost.
  bool Write(std::string line);
  // Waits until everything written so far has reached the sink; false after `timeout`.
  bool Flush(Duration timeout);
  // Lines lost since the beginning.
  uint64_t dropped() const;

 private:
  struct Shared;
  static void Run(const std::shared_ptr<Shared>& shared);

  const std::shared_ptr<Shared> shared_;  // with the thread, which may outlive this object
  std::thread thread_;
};

}  // namespace signvote
