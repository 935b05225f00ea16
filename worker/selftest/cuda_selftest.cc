#include "worker/selftest/cuda_selftest.h"

#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "common/status.h"
#include "worker/codec/cuda_kernels.h"
#include "worker/codec/cuda_memory.h"
#include "worker/direction/cuda_device.h"

namespace signvote {
namespace {

class CudaSelftestMemory : public SelftestMemory {
 public:
  explicit CudaSelftestMemory(int ordinal)
      : device_{.ordinal = ordinal, .current_stream = [] { return nullptr; }} {}

  absl::StatusOr<std::span<float>> Allocate(uint64_t count) override {
    SIGNVOTE_ASSIGN_OR_RETURN(float* const memory, Allocate<float>(count));
    return std::span(memory, count);
  }
  void FreeAll() override {
    if (device_.Use().ok()) buffers_.clear();
  }
  absl::Status Write(float* to, std::span<const float> from) override {
    return Copy(to, from.data(), from.size(), cudaMemcpyHostToDevice);
  }
  absl::Status Read(std::span<float> to, const float* from) override {
    return Copy(to.data(), from, to.size(), cudaMemcpyDeviceToHost);
  }
  absl::Status CopyWithin(float* to, const float* from, uint64_t count) override {
    return Copy(to, from, count, cudaMemcpyDeviceToDevice);
  }
  absl::StatusOr<std::optional<Kernels>> KernelsAlone(std::span<const float> g,
                                                      std::span<float> x) override {
    const uint64_t d = g.size();
    // A model of one tensor and one chunk.
    const cuda::TensorRow rows[2] = {
        {.first = 0, .step_scale = 1.0f, .weight_decay = 0.0f, .sparse = 0, .unused = 0},
        {.first = d, .step_scale = 0.0f, .weight_decay = 0.0f, .sparse = 0, .unused = 0}};
    SIGNVOTE_ASSIGN_OR_RETURN(cuda::TensorRow* const table, Allocate<cuda::TensorRow>(2));
    SIGNVOTE_ASSIGN_OR_RETURN(float* const m, Allocate<float>(d));
    SIGNVOTE_ASSIGN_OR_RETURN(uint32_t* const bits, Allocate<uint32_t>(d / 32 + 1));
    SIGNVOTE_ASSIGN_OR_RETURN(PackScalars* const pieces,
                              Allocate<PackScalars>(cuda::PieceSlots(d, 1)));
    SIGNVOTE_RETURN_IF_ERROR(
        SIGNVOTE_CUDA(cudaMemcpyAsync, table, rows, sizeof(rows), cudaMemcpyHostToDevice, nullptr));
    const cuda::TensorInputs inputs{.g = g.data(), .u = nullptr, .h = nullptr};
    float* const x_of_tensor = x.data();
    SIGNVOTE_ASSIGN_OR_RETURN(cuda::TensorInputs* const input_table,
                              Allocate<cuda::TensorInputs>(1));
    SIGNVOTE_ASSIGN_OR_RETURN(float** const x_table, Allocate<float*>(1));
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, input_table, &inputs, sizeof(inputs),
                                           cudaMemcpyHostToDevice, nullptr));
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, x_table, &x_of_tensor,
                                           sizeof(x_of_tensor), cudaMemcpyHostToDevice, nullptr));
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemsetAsync, m, 0, d * sizeof(float), nullptr));
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaStreamSynchronize, nullptr));
    const cuda::PackArguments pack{.inputs = input_table,
                                   .given = false,
                                   .probe = false,
                                   .state = {m},
                                   .formed = false,
                                   .envelopes = nullptr,
                                   .prev_verdict = nullptr,
                                   .bits = reinterpret_cast<uint16_t*>(bits),
                                   .pieces = pieces,
                                   .tensors = table,
                                   .tensor_count = 1,
                                   .first = 0,
                                   .count = d,
                                   .a = 0.9f,
                                   .c = 0.9f,
                                   .formation = {},
                                   .clip = 1.0f,
                                   .seed = 1,
                                   .round = 1,
                                   .share = 0};
    const cuda::ApplyArguments apply{.x = x_table,
                                     .x0 = nullptr,
                                     .verdict = bits,
                                     .tensors = table,
                                     .tensor_count = 1,
                                     .first = 0,
                                     .count = d,
                                     .gamma = 1e-6f,
                                     .rho = 1.0f,
                                     .decay_step = 1e-6f,
                                     .scales = nullptr};
    return std::optional<Kernels>(
        Kernels{.pack = [this, pack]() -> absl::Status {
                  SIGNVOTE_RETURN_IF_ERROR(device_.Use());
                  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cuda::LaunchPack, pack, nullptr));
                  return SIGNVOTE_CUDA(cudaStreamSynchronize, nullptr);
                },
                .apply = [this, apply]() -> absl::Status {
                  SIGNVOTE_RETURN_IF_ERROR(device_.Use());
                  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cuda::LaunchApply, apply, nullptr));
                  return SIGNVOTE_CUDA(cudaStreamSynchronize, nullptr);
                }});
  }

 private:
  template <typename T>
  absl::StatusOr<T*> Allocate(uint64_t count) {
    SIGNVOTE_RETURN_IF_ERROR(device_.Use());
    SIGNVOTE_ASSIGN_OR_RETURN(auto buffer, cuda::DeviceBuffer<std::byte>::Make(count * sizeof(T)));
    buffers_.push_back(std::move(buffer));
    return reinterpret_cast<T*>(buffers_.back().data());
  }
  absl::Status Copy(float* to, const float* from, uint64_t count, cudaMemcpyKind kind) {
    SIGNVOTE_RETURN_IF_ERROR(device_.Use());
    SIGNVOTE_RETURN_IF_ERROR(
        SIGNVOTE_CUDA(cudaMemcpyAsync, to, from, count * sizeof(float), kind, nullptr));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, nullptr);
  }

  const cuda::Device device_;
  std::vector<cuda::DeviceBuffer<std::byte>> buffers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SelftestMemory>> MakeCudaSelftestMemory(int ordinal) {
  // Whether there is such a device is the device's to say.
  SIGNVOTE_RETURN_IF_ERROR(MakeCudaDevice(ordinal, [] { return nullptr; }).status());
  return std::make_unique<CudaSelftestMemory>(ordinal);
}

}  // namespace signvote
