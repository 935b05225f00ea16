#pragma once
// The worker's replica and the round at which each part of it stands.
//
// After a state transfer the parts stand at different rounds, because the server's replica moves on
// while it is sent. A commit is applied to the parts that stand at its round and to no others; once
// all parts are level they are one.
//
// Ownership: refers to the caller's memory and layout, which must outlive it.
// Threads:   not thread-safe.
// Failure:   what the memory fails with is returned as it is.

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/layout.h"
#include "worker/codec/replica_memory.h"

namespace signvote {

class Replica {
 public:
  Replica(const Layout* layout, ReplicaMemory* memory) : layout_(layout), memory_(memory) {}

  // The whole of it holds all commits before `round`.
  void SetWhole(Round round);
  // Forgets everything; AddPart then covers the model from coordinate 0 on.
  void Clear() { parts_.clear(); }
  // Coordinates [first, first + count) hold all commits before `round`. INVALID_ARGUMENT unless it
  // follows the last part.
  absl::Status AddPart(Round round, uint64_t first, uint64_t count);

  // Every coordinate is there / stands at the same round.
  bool complete() const { return !parts_.empty() && parts_.back().end == memory_->coordinates(); }
  bool level() const { return complete() && parts_.size() == 1; }
  // Next commit that some part needs. REQUIRES: complete().
  Round round() const;

  // Applies the commit of `round` to the parts that stand at it. `verdict` holds the whole model's
  // bits.
  // FAILED_PRECONDITION: some part lacks an earlier commit; nothing was changed.
  absl::Status Apply(Round round, float stepsize, const uint8_t* verdict);
  // docs/wire_format.md, "Replica digest". REQUIRES: level().
  absl::StatusOr<uint64_t> Digest() const;

 private:
  struct Part {
    uint64_t end;  // one past its last coordinate
    Round round;
  };

  const Layout* const layout_;
  ReplicaMemory* const memory_;
  std::vector<Part>
      parts_;  // in order of coordinate, without gaps; neighbours stand at different rounds
};

}  // namespace signvote
