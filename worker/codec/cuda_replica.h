#pragma once
// A replica in the memory of a GPU.

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"
#include "worker/codec/cuda_memory.h"
#include "worker/codec/replica_memory.h"

namespace signvote::cuda {

// Every call queues on the calling thread's current stream, behind the work that is there, and
// waits for the end.
//
// Ownership: refers to the device and to x, device memory that somebody else owns; both must
// outlive it.
// Threads:   calls may come from different threads, one at a time.
class CudaReplicaMemory : public ReplicaMemory {
 public:
  static absl::StatusOr<std::unique_ptr<CudaReplicaMemory>> Make(const Device* device,
                                                                 const Layout* layout,
                                                                 std::span<float> x);

  uint64_t coordinates() const override { return x_.size(); }
  absl::Status Write(uint64_t first, std::span<const float> values) override;
  absl::Status Read(uint64_t first, std::span<float> values) override;
  // REQUIRES: `layout` is the one that it was made for.
  absl::Status ApplyStep(const Layout& layout, float gamma, uint64_t first, uint64_t count,
                         const uint8_t* verdict) override;
  // Hashed on the host, through two small buffers (docs/decisions/0010-digest-on-the-host.md).
  absl::StatusOr<uint64_t> Digest() override;

  // The verdict that was applied last, as far as it was applied; zero where none was. Device
  // memory, [⌈d/256⌉·8].
  const uint32_t* verdict() const { return verdict_.data(); }

 private:
  CudaReplicaMemory(const Device* device, const Layout* layout, std::span<float> x)
      : device_(device), layout_(layout), x_(x) {}
  template <typename Function>
  absl::Status Guarded(const Function& function);

  const Device* const device_;
  const Layout* const layout_;
  const std::span<float> x_;
  DeviceBuffer<TensorRow> tensors_;
  DeviceBuffer<uint32_t> verdict_;
  PinnedBuffer<float> pieces_[2];
  Event copied_[2];      // pieces_[i] holds what was asked for last
  absl::Status poison_;  // OK until a call of CUDA failed
};

}  // namespace signvote::cuda
