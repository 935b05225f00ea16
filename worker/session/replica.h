#pragma once
// The worker's replica and the round at which each part of it stands.
//
// After a state transfer the parts stand at different rounds, because the server's replica moves on while it is sent.
// A commit is applied to the parts that stand at its round and to no others; once all parts are level they are one.
//
// Ownership: refers to the caller's x and layout, which must outlive it.
// Threads:   not thread-safe.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/ids.h"
#include "common/layout.h"

namespace signvote {

class Replica {
 public:
  Replica(const Layout* layout, std::span<float> x) : layout_(layout), x_(x) {}

  // The whole of x holds all commits before `round`.
  void SetWhole(Round round);
  // Forgets everything; AddPart then covers x from coordinate 0 on.
  void Clear() { parts_.clear(); }
  // x[first, first + count) holds all commits before `round`. INVALID_ARGUMENT unless it follows the last part.
  absl::Status AddPart(Round round, uint64_t first, uint64_t count);

  // Every coordinate is there / stands at the same round.
  bool complete() const { return !parts_.empty() && parts_.back().end == x_.size(); }
  bool level() const { return complete() && parts_.size() == 1; }
  // Next commit that some part needs. REQUIRES: complete().
  Round round() const;

  // Applies the commit of `round` to the parts that stand at it. `verdict` holds the whole model's bits.
  // FAILED_PRECONDITION: some part lacks an earlier commit; nothing was changed.
  absl::Status Apply(Round round, float stepsize, const uint8_t* verdict);
  // docs/wire_format.md, "Replica digest". REQUIRES: level().
  uint64_t Digest() const;

 private:
  struct Part {
    uint64_t end;  // one past its last coordinate
    Round round;
  };

  const Layout* layout_;
  std::span<float> x_;
  std::vector<Part>
      parts_;  // in order of coordinate, without gaps; neighbours stand at different rounds
};

}  // namespace signvote
