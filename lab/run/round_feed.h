#pragma once
// Follows a file of JSON lines that another process appends to, line by line.

#include <cstdint>
#include <string>

#include "common/file_system.h"

namespace signvote::lab {

// Threads: not thread-safe.
class RoundFeed {
 public:
  RoundFeed(FileSystem* fs, std::string path);

  // Reads what has come; whether something has. A file that is not there yet has nothing. A last line that
  // is not whole is read once it is; one that never will be, because its writer was killed amid it, is left
  // out with what the next writer puts behind it.
  bool Read();
  // Committed rounds: the last one's number, and one. 0: none.
  uint64_t rounds() const { return rounds_; }
  // Minibatches of the ballots that were counted.
  uint64_t minibatches() const { return minibatches_; }

 private:
  FileSystem* const fs_;
  const std::string path_;
  uint64_t offset_ = 0;
  uint64_t rounds_ = 0;
  uint64_t minibatches_ = 0;
};

}  // namespace signvote::lab
