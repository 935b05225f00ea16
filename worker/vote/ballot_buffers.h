#pragma once
// Memory for packed ballots, used again from round to round. A ballot is shared: whoever still sends
// it keeps it, also beyond the round, and the next one is then packed elsewhere.
//
// Ownership: a buffer belongs to those who share it, and lies in memory that they keep alive with it;
//            it may outlive this object. Its content is undefined when it is taken.
// Threads:   Take() on one thread; buffers are let go of on any.
// Invariant: at most one buffer is kept that nobody uses: one that a slow network gave back late is
//            freed.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>

namespace signvote {

class BallotBuffers {
 public:
  // Of `bytes` each; `memory` must be thread-safe.
  BallotBuffers(size_t bytes, std::shared_ptr<std::pmr::memory_resource> memory);

  // One that nobody else uses.
  std::shared_ptr<uint8_t> Take();

 private:
  class Shelf;
  const std::shared_ptr<Shelf> shelf_;  // shared with every buffer that is out
};

}  // namespace signvote
