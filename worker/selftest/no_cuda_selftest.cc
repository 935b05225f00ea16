// cuda_selftest.h in a build without CUDA.

#include "common/status.h"
#include "worker/direction/cuda_device.h"
#include "worker/selftest/cuda_selftest.h"

namespace signvote {

absl::StatusOr<std::unique_ptr<SelftestMemory>> MakeCudaSelftestMemory(int ordinal) {
  return MakeCudaDevice(ordinal, [] { return nullptr; }).status();
}

}  // namespace signvote
