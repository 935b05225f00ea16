#pragma once
// What the kernels' sources need beyond CUDA's own words, so that one text serves nvcc and
// tests/gpu/emulator.

#include <cuda_runtime.h>

#include <cstdint>

#include "worker/codec/cuda_kernels.h"

namespace signvote::cuda {

inline constexpr unsigned kFullWarp = 0xFFFFFFFFu;
inline constexpr uint32_t kThreads = 256;  // of every block

template <typename Arguments>
cudaError_t LaunchKernel(void (*kernel)(Arguments), uint64_t blocks, const Arguments& arguments,
                         cudaStream_t stream) {
  if (blocks > 0x7FFFFFFFu) return cudaErrorInvalidConfiguration;
#ifdef __CUDACC__
  // Not <<<>>>, whose error is the last one of the thread, whoever made it.
  Arguments copy = arguments;
  void* pointers[] = {&copy};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), pointers, 0,
                          stream);
#else
  return emulator::Launch(kernel, static_cast<unsigned>(blocks), kThreads, arguments, stream);
#endif
}

// The tensor among rows [0, count) that holds coordinate `at`. REQUIRES: rows[0].first ≤ at <
// rows[count].first.
__device__ inline uint32_t FindTensor(const TensorRow* rows, uint32_t count, uint64_t at) {
  uint32_t low = 0;
  for (uint32_t size = count; size > 1;) {
    const uint32_t half = size / 2;
    if (rows[low + half].first <= at) {
      low += half;
      size -= half;
    } else {
      size = half;
    }
  }
  return low;
}

}  // namespace signvote::cuda
