// The apply kernels: a block is a tile of 4096 coordinates of the model.

#include "worker/codec/cuda_kernels.h"
#include "worker/codec/cuda_launch.cuh"

namespace signvote::cuda {
namespace {

constexpr uint32_t kVectors = kTileCoordinates / 4 / kThreads;  // of four coordinates, per thread

struct Step {
  float a, c;
};

// The roundings of common/apply.h, one a line.
__device__ inline Step StepOf(const ApplyArguments& p, uint32_t k) {
  const TensorRow tensor = p.tensors[k];
  float a = __fmul_rn(p.gamma, tensor.step_scale);
  if (p.scales != nullptr) a = __fmul_rn(a, p.scales[k]);
  const float e = __fmul_rn(p.decay_step, tensor.step_scale);
  return {a, fmaf(-e, tensor.weight_decay, 1.0f)};
}

template <bool kRescale>
__device__ inline float MovedBy(float x, float x0, float t, float c, float rho) {
  if constexpr (kRescale) {
    const float delta = __fsub_rn(x, x0);
    x = fmaf(rho, delta, x0);
  }
  return fmaf(x, c, t);
}

template <bool kRescale>
__device__ inline float Moved(float x, float x0, bool bit, float a, float c, float rho) {
  return MovedBy<kRescale>(x, x0, bit ? -a : a, c, rho);
}

template <bool kRescale>
__global__ void __launch_bounds__(kThreads) ApplyKernel(ApplyArguments p) {
  const uint64_t end = p.first + p.count;
  const uint64_t tile_first =
      (p.first / kTileCoordinates + blockIdx.x) * uint64_t{kTileCoordinates};
  const uint64_t tile_end = tile_first + kTileCoordinates;
  uint64_t begin = tile_first > p.first ? tile_first : p.first;
  const uint64_t stop = tile_end < end ? tile_end : end;
  for (uint32_t k = FindTensor(p.tensors, p.tensor_count, begin); begin < stop; ++k) {
    const TensorRow tensor = p.tensors[k];
    const uint64_t tensor_end = p.tensors[k + 1].first;
    const uint64_t to = tensor_end < stop ? tensor_end : stop;
    const auto [a, c] = StepOf(p, k);
    // Of the tensor's coordinates in this tile the first.
    float* const part = p.x[k] + (begin - tensor.first);
    const bool aligned = reinterpret_cast<uintptr_t>(part) % sizeof(float4) == 0 &&
                         (!kRescale || reinterpret_cast<uintptr_t>(p.x0) % sizeof(float4) == 0);
    if (aligned && begin == tile_first && to == tile_end) {
      // A whole tile of one tensor: 16 bytes a load, all of them before the first store.
      float4* const x = reinterpret_cast<float4*>(part);
      float4 v[kVectors], v0[kVectors];
      uint32_t bits[kVectors];
#pragma unroll
      for (uint32_t j = 0; j < kVectors; ++j) {
        const uint32_t at = threadIdx.x + j * kThreads;
        v[j] = x[at];
        if constexpr (kRescale) v0[j] = reinterpret_cast<const float4*>(p.x0 + tile_first)[at];
        bits[j] = p.verdict[tile_first / 32 + at / 8] >> (at % 8 * 4);
      }
#pragma unroll
      for (uint32_t j = 0; j < kVectors; ++j) {
        if constexpr (!kRescale) v0[j] = float4{};
        float4 moved;
        moved.x = Moved<kRescale>(v[j].x, v0[j].x, (bits[j] & 1u) != 0, a, c, p.rho);
        moved.y = Moved<kRescale>(v[j].y, v0[j].y, (bits[j] & 2u) != 0, a, c, p.rho);
        moved.z = Moved<kRescale>(v[j].z, v0[j].z, (bits[j] & 4u) != 0, a, c, p.rho);
        moved.w = Moved<kRescale>(v[j].w, v0[j].w, (bits[j] & 8u) != 0, a, c, p.rho);
        x[threadIdx.x + j * kThreads] = moved;
      }
    } else {
      const uint32_t count = static_cast<uint32_t>(to - begin);
      for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
        const uint64_t at = begin + i;
        const bool bit = ((p.verdict[at / 32] >> (at % 32)) & 1u) != 0;
        const float x0 = kRescale ? p.x0[at] : 0.0f;
        part[i] = Moved<kRescale>(part[i], x0, bit, a, c, p.rho);
      }
    }
    begin = to;
  }
}

__device__ inline float CountsTerm(const CountsArguments& p, uint64_t at, float a) {
  uint32_t ones = 0;
  for (uint32_t k = 0; k < p.plane_count; ++k) {
    const uint32_t word = p.planes[k * p.plane_words + at / 32];
    ones |= ((word >> (at % 32)) & 1u) << k;
  }
  const int sum = 2 * static_cast<int>(ones) - static_cast<int>(p.ballots);
  const float w = __fdiv_rn(static_cast<float>(sum), static_cast<float>(p.ballots));
  return -__fmul_rn(a, w);
}

__device__ inline float Term(const CountsArguments& p, uint64_t at, float a) {
  return CountsTerm(p, at, a);
}

__device__ inline float Term(const DenseArguments& p, uint64_t at, float a) {
  float v;
  if (p.bf16) {
    v = __uint_as_float(static_cast<unsigned>(static_cast<const uint16_t*>(p.values)[at]) << 16);
  } else {
    v = static_cast<const float*>(p.values)[at];
  }
  return -__fmul_rn(a, v);
}

// A coordinate a thread; what Term() says of it is its step.
template <bool kRescale, typename Payload>
__global__ void __launch_bounds__(kThreads) ApplyTermsKernel(Payload payload) {
  const ApplyArguments& p = payload.step;
  const uint64_t end = p.first + p.count;
  const uint64_t tile_first =
      (p.first / kTileCoordinates + blockIdx.x) * uint64_t{kTileCoordinates};
  const uint64_t tile_end = tile_first + kTileCoordinates;
  uint64_t begin = tile_first > p.first ? tile_first : p.first;
  const uint64_t stop = tile_end < end ? tile_end : end;
  for (uint32_t k = FindTensor(p.tensors, p.tensor_count, begin); begin < stop; ++k) {
    const uint64_t tensor_end = p.tensors[k + 1].first;
    const uint64_t to = tensor_end < stop ? tensor_end : stop;
    const auto [a, c] = StepOf(p, k);
    float* const part = p.x[k] + (begin - p.tensors[k].first);
    const uint32_t count = static_cast<uint32_t>(to - begin);
    for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
      const uint64_t at = begin + i;
      const float x0 = kRescale ? p.x0[at] : 0.0f;
      part[i] = MovedBy<kRescale>(part[i], x0, Term(payload, at - payload.first, a), c, p.rho);
    }
    begin = to;
  }
}

uint64_t TilesOf(const ApplyArguments& p) {
  const uint64_t first_tile = p.first / kTileCoordinates;
  const uint64_t last_tile = (p.first + p.count - 1) / kTileCoordinates;
  return last_tile - first_tile + 1;
}

}  // namespace

cudaError_t LaunchApplyCounts(const CountsArguments& p, cudaStream_t stream) {
  return LaunchKernel(p.step.rho == 1.0f ? ApplyTermsKernel<false, CountsArguments>
                                         : ApplyTermsKernel<true, CountsArguments>,
                      TilesOf(p.step), p, stream);
}

cudaError_t LaunchApplyDense(const DenseArguments& p, cudaStream_t stream) {
  return LaunchKernel(p.step.rho == 1.0f ? ApplyTermsKernel<false, DenseArguments>
                                         : ApplyTermsKernel<true, DenseArguments>,
                      TilesOf(p.step), p, stream);
}

cudaError_t LaunchApply(const ApplyArguments& p, cudaStream_t stream) {
  return LaunchKernel(p.rho == 1.0f ? ApplyKernel<false> : ApplyKernel<true>, TilesOf(p), p,
                      stream);
}

}  // namespace signvote::cuda
