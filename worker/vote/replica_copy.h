#pragma once
// Other memory that is to hold what the replica holds: the parameters of a model that computes in
// bf16, of one of several virtual workers on one replica.

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "common/layout.h"
#include "worker/codec/replica_memory.h"
#include "worker/codec/tensor_pointers.h"

namespace signvote {

// Threads: thread-compatible. Failure: what reading the replica fails with is returned as it is.
class ReplicaCopy {
 public:
  virtual ~ReplicaCopy() = default;
  // The replica's coordinates [first, first + count) have moved: takes them over.
  virtual absl::Status Refresh(ReplicaMemory* replica, uint64_t first, uint64_t count) = 0;
};

// fp32 in the host's memory, by tensor.
// Ownership: the layout and the values must outlive it; the pointers are copied.
class HostReplicaCopy : public ReplicaCopy {
 public:
  // One pointer per tensor of the layout, the replica's; else Refresh() is INVALID_ARGUMENT.
  HostReplicaCopy(const Layout* layout, TensorPointers values);
  absl::Status Refresh(ReplicaMemory* replica, uint64_t first, uint64_t count) override;

 private:
  const Layout* const layout_;
  const std::vector<float*> values_;
};

}  // namespace signvote
