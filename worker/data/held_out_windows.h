#pragma once
// Which windows of a corpus are held out for measuring, and the number that names them. The same for
// every worker, seed and run, whatever its minibatches are. docs/data.md, "Held out, exactly".

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/checksum.h"
#include "worker/data/dataset.h"

namespace signvote {

// Windows of the held-out part that do not overlap, spread over the whole of it.
// Threads:   immutable.
class HeldOutWindows {
 public:
  // Of a part of `tokens`, windows of `length` tokens with their successors: as many as hold
  // `targets` targets, at least one, at most all. REQUIRES: tokens > length > 0.
  HeldOutWindows(uint64_t tokens, uint64_t length, uint64_t targets);

  uint64_t count() const { return count_; }
  // The first token of the k-th, counted from the part's beginning. REQUIRES: k < count().
  uint64_t First(uint64_t k) const;

 private:
  uint64_t length_;
  uint64_t whole_;  // windows that the part holds
  uint64_t count_;
};

// XXH3-64 of what is measured: docs/wire_format.md, "Held-out windows". Losses of equal hashes may be
// compared.
class HeldOutHash {
 public:
  // Of `windows` windows of `length` tokens; length 0: of so many samples.
  HeldOutHash(uint64_t windows, uint64_t length);
  // The next rows, in order.
  void Add(const Batch& rows);
  uint64_t Digest() const { return hash_.Digest(); }

 private:
  Xxh3Stream hash_;
};

// Of all windows of a data set, which are read once. REQUIRES: it has some.
absl::StatusOr<uint64_t> HashOfHeldOut(const Dataset& dataset);

}  // namespace signvote
