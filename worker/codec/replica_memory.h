#pragma once
// Where a worker's replica lies, and the few things that are done to it there. The session moves a
// replica only through this interface, so that it need not know whether the parameters are in host
// memory or on a GPU.
//
// Threads: not thread-safe.
// Failure: host memory never fails. On a device, INTERNAL names the CUDA call and its error, and
// every later call
//          returns that same status: what the memory holds is unknown from then on.

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"

namespace signvote {

class ReplicaMemory {
 public:
  virtual ~ReplicaMemory() = default;

  virtual uint64_t coordinates() const = 0;  // d
  // Coordinates [first, first + values.size()) ← values, and the reverse. REQUIRES: within [0, d).
  virtual absl::Status Write(uint64_t first, std::span<const float> values) = 0;
  virtual absl::Status Read(uint64_t first, std::span<float> values) = 0;
  // Applies a step (common/apply.h) to coordinates [first, first + count) of `layout`, the
  // replica's. `verdict` is host memory and holds the whole model's packed bits; it may be reused
  // on return.
  virtual absl::Status ApplyStep(const Layout& layout, float gamma, uint64_t first, uint64_t count,
                                 const uint8_t* verdict) = 0;
  // docs/wire_format.md, "Replica digest".
  virtual absl::StatusOr<uint64_t> Digest() = 0;
};

// Ownership: refers to x, which must outlive it.
class HostReplicaMemory : public ReplicaMemory {
 public:
  explicit HostReplicaMemory(std::span<float> x) : x_(x) {}

  uint64_t coordinates() const override { return x_.size(); }
  absl::Status Write(uint64_t first, std::span<const float> values) override;
  absl::Status Read(uint64_t first, std::span<float> values) override;
  absl::Status ApplyStep(const Layout& layout, float gamma, uint64_t first, uint64_t count,
                         const uint8_t* verdict) override;
  absl::StatusOr<uint64_t> Digest() override;

 private:
  const std::span<float> x_;
};

}  // namespace signvote
