#pragma once
// Packed-bit buffers of one size that are used again and again: the first touch of fresh memory is
// an order of magnitude slower than using it, and a round needs its buffers at once.

#include <cstddef>
#include <cstdint>
#include <memory>

namespace signvote {

// Ownership:  a buffer goes back to the pool when its last reference goes, even when the pool's
//             owner is gone by then.
// Threads:    thread-safe.
class BufferPool {
 public:
  // Keeps at most `kept_max` unused buffers; more are freed.
  BufferPool(size_t bytes, size_t kept_max);

  // `bytes` bytes, 64-byte aligned, contents unspecified. Neighbouring buffers start a different
  // number of cache lines into their pages, so that a tally over many of them does not meet itself
  // in the cache's sets.
  std::shared_ptr<uint8_t> Acquire();
  size_t bytes() const { return bytes_; }
  // Buffers in use and kept, for memory accounting.
  size_t allocated() const;

 private:
  struct Shared;
  const size_t bytes_;
  const std::shared_ptr<Shared> shared_;
};

}  // namespace signvote
