#include "worker/direction/cuda_device.h"

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/codec/cuda_memory.h"
#include "worker/codec/cuda_replica.h"
#include "worker/direction/cuda_packer.h"

namespace signvote {
namespace {

using cuda::CudaPacker;
using cuda::CudaReplicaMemory;

// The GPU's name, or why there is none.
absl::StatusOr<std::string> Open(int ordinal) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    // The next reader of the thread's last error shall not find this one.
    (void)cudaGetLastError();
    return NoCudaDevice(ordinal, error == cudaErrorInsufficientDriver
                                     ? "no NVIDIA driver was found, or one too old for CUDA 13"
                                     : cudaGetErrorString(error));
  }
  if (ordinal < 0 || ordinal >= count)
    return NoCudaDevice(ordinal, absl::StrCat("there are ", count));
  cudaDeviceProp properties{};
  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaGetDeviceProperties, &properties, ordinal));
  return std::string(properties.name);
}

class CudaDevice : public WorkerDevice {
 public:
  CudaDevice(std::string name, cuda::Device device)
      : name_(std::move(name)),
        device_(std::move(device)),
        pinned_(std::make_shared<cuda::PinnedMemory>(device_.ordinal)) {}

  std::string name() const override {
    return absl::StrCat("cuda:", device_.ordinal, " (", name_, ")");
  }
  std::shared_ptr<std::pmr::memory_resource> host_memory() override { return pinned_; }

  absl::StatusOr<std::unique_ptr<ReplicaMemory>> MakeReplica(const Layout* layout,
                                                             TensorPointers x) override {
    SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<CudaReplicaMemory> replica,
                              CudaReplicaMemory::Make(&device_, layout, x));
    verdict_ = replica->verdict();
    return replica;
  }
  absl::Status CopyToHost(const float* from, std::span<float> values) override {
    SIGNVOTE_RETURN_IF_ERROR(device_.Use());
    const cudaStream_t stream = device_.stream();
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, values.data(), from,
                                           values.size_bytes(), cudaMemcpyDeviceToHost, stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  }
  bool takes_host_verdicts() const override { return false; }
  absl::StatusOr<std::unique_ptr<BallotPacker>> MakePacker(const Layout* layout, ChunkPlan plan,
                                                           const DirectionConfig& config) override {
    return CudaPacker::Make(&device_, layout, plan, config, &verdict_);
  }

 private:
  const std::string name_;
  const cuda::Device device_;
  const std::shared_ptr<cuda::PinnedMemory> pinned_;
  const uint32_t* verdict_ = nullptr;  // of the replica made last
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerDevice>> MakeCudaDevice(
    int ordinal, std::function<void*()> current_stream) {
  SIGNVOTE_ASSIGN_OR_RETURN(std::string name, Open(ordinal));
  return std::make_unique<CudaDevice>(
      std::move(name),
      cuda::Device{.ordinal = ordinal, .current_stream = std::move(current_stream)});
}

}  // namespace signvote
