#pragma once
// A replica in the memory of a GPU.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"
#include "worker/codec/cuda_memory.h"
#include "worker/codec/replica_memory.h"

namespace signvote::cuda {

// Every call queues on the calling thread's current stream, behind the work that is there, and
// waits for the end.
//
// Ownership: refers to the device, the layout and the tensors of x, device memory that somebody
//            else owns; all must outlive it.
// Threads:   calls may come from different threads, one at a time.
class CudaReplicaMemory : public ReplicaMemory {
 public:
  static absl::StatusOr<std::unique_ptr<CudaReplicaMemory>> Make(const Device* device,
                                                                 const Layout* layout,
                                                                 TensorPointers x);

  uint64_t coordinates() const override { return layout_->coordinates(); }
  absl::Status Write(uint64_t first, std::span<const float> values) override;
  absl::Status Read(uint64_t first, std::span<float> values) override;
  // INVALID_ARGUMENT besides: `layout` is not the one that it was made for; SumsAboutX0 likewise.
  absl::Status Apply(const Layout& layout, const StepArguments& step, uint64_t first,
                     uint64_t count, const uint8_t* verdict) override;
  absl::Status ApplyCounts(const Layout& layout, const StepArguments& step, uint64_t first,
                           uint64_t count, const CountsView& counts) override;
  absl::Status ApplyDense(const Layout& layout, const StepArguments& step, uint64_t first,
                          uint64_t count, const DenseView& dense) override;
  // Hashed on the host, through two small buffers (docs/decisions/0010-digest-on-the-host.md).
  absl::StatusOr<uint64_t> Digest() override;
  // On the host as well; 4 bytes per coordinate travel.
  absl::StatusOr<GradientRange> RangeOf(const Layout& layout, ConstTensorPointers g) override;
  absl::Status KeepX0() override;
  bool keeps_x0() const override { return x0_.size() > 0; }
  void DropX0() override { x0_ = DeviceBuffer<float>(); }
  absl::Status WriteX0(uint64_t first, std::span<const float> values) override;
  absl::Status ReadX0(uint64_t first, std::span<float> values) override;
  absl::Status Rewind(uint64_t first, uint64_t count) override;
  // Added up on the host, block by block, as on the CPU; 12 bytes per coordinate travel.
  absl::StatusOr<X0Sums> SumsAboutX0(const Layout& layout, ConstTensorPointers g) override;

  // The verdict that was applied last, as far as it was applied; zero where none was. Device
  // memory, [⌈d/256⌉·8].
  const uint32_t* verdict() const { return verdict_.data(); }

 private:
  CudaReplicaMemory(const Device* device, const Layout* layout, TensorPointers x)
      : device_(device), layout_(layout), x_(x.begin(), x.end()) {}
  template <typename Function>
  absl::Status Guarded(const Function& function);
  absl::Status CheckLayout(const Layout& layout) const;
  // Queues the copy of the step's scales, and says what the kernels read of the step.
  absl::StatusOr<ApplyArguments> QueueStep(const StepArguments& step, uint64_t first,
                                           uint64_t count, cudaStream_t stream);
  // Queues the copy of x[first, first + count) to host memory.
  absl::Status QueueRead(uint64_t first, uint64_t count, float* to, cudaStream_t stream) const;

  const Device* const device_;
  const Layout* const layout_;
  const std::vector<float*> x_;  // by tensor
  DeviceBuffer<float*> x_table_;
  DeviceBuffer<float> x0_;  // [d], or nothing
  DeviceBuffer<TensorRow> tensors_;
  DeviceBuffer<float> scales_;  // by tensor, of the commit that is being applied
  DeviceBuffer<uint32_t> verdict_;
  // Of the counts, or the values, that are being applied; grows as they need it.
  DeviceBuffer<uint32_t> planes_;
  PinnedBuffer<float> pieces_[2];
  CudaEvent copied_[2];  // pieces_[i] holds what was asked for last
  absl::Status poison_;  // OK until a call of CUDA failed
};

}  // namespace signvote::cuda
