#pragma once
// Where whole lines go, for whoever must not wait for a disk or a pipe.

#include <cstdint>
#include <string>

namespace signvote {

// A line that cannot be taken at once is dropped and counted.
// Threads: as the implementation says; Write() never blocks.
class LineSink {
 public:
  virtual ~LineSink() = default;
  // `line` ends without a newline. False: dropped.
  virtual bool Write(std::string line) = 0;
  virtual uint64_t dropped() const = 0;  // lines so far
};

}  // namespace signvote
