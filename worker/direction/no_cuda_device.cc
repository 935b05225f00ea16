// cuda_device.h in a build without CUDA.

#include "worker/direction/cuda_device.h"

namespace signvote {
namespace {

constexpr char kWhy[] = "this build has no CUDA kernels (it was configured without nvcc)";

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerDevice>> MakeCudaDevice(int ordinal, std::function<void*()>) {
  return NoCudaDevice(ordinal, kWhy);
}

}  // namespace signvote
