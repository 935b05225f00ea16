#pragma once
// The worker's replica and the round at which each part of it stands.
//
// After a state transfer the parts stand at different rounds, because the server's replica moves on
// while it is sent. A commit is applied to the parts that stand at its round and to no others; once
// all parts are level they are one. It may be applied while the transfer still runs: to the parts
// that are there. Where the run needs x0, that is a second plane, the same at every round.
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
#include "worker/session/verdict_assembler.h"

namespace signvote {

class Replica {
 public:
  enum class X0 { kUnused, kNeeded };

  // REQUIRES: memory->keeps_x0() with kNeeded.
  Replica(const Layout* layout, ReplicaMemory* memory, X0 x0)
      : layout_(layout), memory_(memory), x0_(x0) {}

  // The whole of it stands at round 0, the run's start; x0 becomes a copy of it.
  absl::Status BeginHere();
  // Forgets everything; AddPart then covers each plane from coordinate 0 on.
  void Clear();
  // Before parts of x0 may come again: makes room where the run needs x0 and it was let go of.
  absl::Status ExpectX0();
  // No commit from now on wants x0: its memory is given back.
  void LetGoOfX0();
  // Coordinates [first, first + count) are there and hold all commits before `round`.
  // INVALID_ARGUMENT unless they follow the last part.
  absl::Status AddPart(Round round, uint64_t first, uint64_t count);
  // The same of x0. INVALID_ARGUMENT also where it is not needed.
  absl::Status AddX0Part(uint64_t first, uint64_t count);

  // Coordinates from 0 on that are there, of either plane.
  uint64_t received() const { return parts_.empty() ? 0 : parts_.back().end; }
  uint64_t received_x0() const { return x0_end_; }
  bool needs_x0() const { return x0_ == X0::kNeeded && !x0_let_go_; }
  // Every coordinate of every plane is there / and stands at the same round.
  bool complete() const { return received() == layout_->coordinates() && x0_complete(); }
  bool level() const { return complete() && parts_.size() == 1; }
  // Next commit that some part which is there needs; round 0 when none is.
  Round round() const;

  // Applies a commit to the parts that stand at its round. FAILED_PRECONDITION, and nothing was
  // changed: some part lacks an earlier commit, no part is there, or x0 is wanted and is not there.
  absl::Status Apply(const CommitEvent& commit);
  // docs/wire_format.md, "Replica digest". FAILED_PRECONDITION unless level().
  absl::StatusOr<uint64_t> Digest() const;

 private:
  struct Part {
    uint64_t end;  // one past its last coordinate
    Round round;
  };

  bool x0_complete() const { return !needs_x0() || x0_end_ == layout_->coordinates(); }
  absl::Status ApplyTo(const CommitEvent& commit, uint64_t first, uint64_t count);
  // The step on coordinates of chunk k.
  absl::Status ApplyChunk(const CommitEvent& commit, const StepArguments& step, ChunkIndex k,
                          uint64_t first, uint64_t count);

  const Layout* const layout_;
  ReplicaMemory* const memory_;
  const X0 x0_;  // the run's need
  // In order of coordinate, without gaps; neighbours stand at different rounds.
  std::vector<Part> parts_;
  uint64_t x0_end_ = 0;
  bool x0_let_go_ = false;  // of a run that needed it
};

}  // namespace signvote
