#pragma once
// Chunks by a count that moves by one at a time; all chunks of one count are found without a search.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace signvote::round {

// Threads: thread-compatible.
// Cost:    every call is O(1).
class ChunkBuckets {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  // Every chunk starts with count 0; counts go up to count_max.
  ChunkBuckets(uint32_t chunks, uint32_t count_max);

  uint32_t count(uint32_t chunk) const { return count_[chunk]; }
  // REQUIRES: the chunk was not removed, and its count stays within 0 and count_max.
  void Increment(uint32_t chunk) { Move(chunk, count_[chunk] + 1); }
  void Decrement(uint32_t chunk) { Move(chunk, count_[chunk] - 1); }
  // The chunk is in no bucket any more; it keeps its count. REQUIRES: not removed yet.
  void Remove(uint32_t chunk) { Unlink(chunk); }
  // The chunks of one count: First, then Next of each; kNone at the end, in no stated order.
  uint32_t First(uint32_t count) const { return head_[count]; }
  uint32_t Next(uint32_t chunk) const { return next_[chunk]; }

 private:
  void Link(uint32_t chunk) {
    const uint32_t head = head_[count_[chunk]];
    prev_[chunk] = kNone;
    next_[chunk] = head;
    if (head != kNone) prev_[head] = chunk;
    head_[count_[chunk]] = chunk;
  }
  void Unlink(uint32_t chunk) {
    if (prev_[chunk] != kNone) {
      next_[prev_[chunk]] = next_[chunk];
    } else {
      head_[count_[chunk]] = next_[chunk];
    }
    if (next_[chunk] != kNone) prev_[next_[chunk]] = prev_[chunk];
  }
  void Move(uint32_t chunk, uint32_t count) {
    Unlink(chunk);
    count_[chunk] = count;
    Link(chunk);
  }

  std::vector<uint32_t> count_;  // by chunk
  std::vector<uint32_t> next_, prev_;
  std::vector<uint32_t> head_;  // by count
};

}  // namespace signvote::round
