// The pack kernel: a block is a tile, half a warp a group, a thread a lane (pack_sums.h).
//
// Thread l of a half warp holds coordinates l, l + 16, …, l + 240 of its group. So a warp's load is
// two runs of 64 consecutive bytes, both whole sectors; a ballot holds sixteen neighbouring bits of
// each of two groups; and a lane's sum never leaves its thread. Loads of 16 bytes per thread would
// spread each lane's terms over four threads and each word of bits over four ballots; sixteen
// independent 4-byte loads per array keep as many bytes in flight.

#include "common/coin_mix.h"
#include "worker/codec/cuda_kernels.h"
#include "worker/codec/cuda_launch.cuh"

namespace signvote::cuda {
namespace {

constexpr uint32_t kRows = kGroupCoordinates / kSumLanes;           // coordinates of a thread
constexpr uint32_t kGroups = kTileCoordinates / kGroupCoordinates;  // of a tile
static_assert(kRows == 16 && kSumLanes == 16 && kGroups * kSumLanes == kThreads);

__device__ inline bool Finite(float v) { return fabsf(v) <= 3.402823466e38f; }

// Lane 0 of each half warp gets the sum of its sixteen lanes.
__device__ inline double AddUpLanes(double v) {
  for (uint32_t step = kSumLanes / 2; step > 0; step /= 2) {
    v += __shfl_down_sync(kFullWarp, v, step, kSumLanes);
  }
  return v;
}
__device__ inline uint32_t AddUpLanes(uint32_t v) {
  for (uint32_t step = kSumLanes / 2; step > 0; step /= 2) {
    v += __shfl_down_sync(kFullWarp, v, step, kSumLanes);
  }
  return v;
}

template <bool kState, bool kGiven, bool kProbe, bool kPrevious>
__global__ void __launch_bounds__(kThreads) PackKernel(PackArguments p) {
  // Two of each: while one thread adds up a piece's groups the others go on to the next piece.
  __shared__ double group_l1[2][kGroups], group_l2[2][kGroups];
  __shared__ double group_probe[2][kGroups], group_prev[2][kGroups];
  __shared__ uint32_t group_nonfinite[2][kGroups];

  const uint32_t lane = threadIdx.x % kSumLanes;
  const uint32_t group = threadIdx.x / kSumLanes;
  const uint64_t tile_first = uint64_t{blockIdx.x} * kTileCoordinates;  // in the chunk
  const uint64_t left = p.count - tile_first;
  const uint32_t tile_count =
      left < kTileCoordinates ? static_cast<uint32_t>(left) : kTileCoordinates;
  const uint32_t group_first = group * kGroupCoordinates;           // in the tile
  const uint64_t model_first = p.first + tile_first + group_first;  // of the group

  // This thread's coordinates are thread_first + 16 k, of which those with 16 k < rest are in the
  // chunk.
  const int32_t rest = static_cast<int32_t>(tile_count) - static_cast<int32_t>(group_first + lane);
  const uint64_t thread_first = model_first + lane;
  const auto in_chunk = [rest](uint32_t k) { return static_cast<int32_t>(k * kSumLanes) < rest; };

  // The tensor of the thread's first coordinate; nearly always that of all of them.
  const uint64_t block_first = p.first + tile_first;
  const uint32_t first_tensor = FindTensor(p.tensors, p.tensor_count, block_first);
  uint32_t tensor = first_tensor;
  TensorInputs inputs = p.inputs[tensor];
  uint64_t tensor_first = p.tensors[tensor].first, tensor_end = p.tensors[tensor + 1].first;

  // All loads before the first use.
  float g[kRows], m[kRows], u[kRows], h[kRows];
  uint32_t coins = 0;  // bit k: coordinate k has nothing to sign
#pragma unroll
  for (uint32_t k = 0; k < kRows; ++k) {
    g[k] = 0.0f;
    if constexpr (kState) m[k] = 0.0f;
    if constexpr (kGiven) u[k] = 0.0f;
    if constexpr (kProbe) h[k] = 0.0f;
    if (!in_chunk(k)) continue;
    const uint64_t at = thread_first + k * kSumLanes;
    if (at >= tensor_end) {
      do tensor_end = p.tensors[++tensor + 1].first;
      while (at >= tensor_end);
      tensor_first = p.tensors[tensor].first;
      inputs = p.inputs[tensor];
    }
    if (inputs.g != nullptr) {
      g[k] = inputs.g[at - tensor_first];
    } else if constexpr (!kGiven) {
      coins |= 1u << k;
    }
    if constexpr (kState) m[k] = p.state[0][at];
    if constexpr (kGiven) u[k] = inputs.u[at - tensor_first];
    if constexpr (kProbe) {
      if (inputs.h != nullptr) h[k] = inputs.h[at - tensor_first];
    }
  }
  uint32_t plus = 0;  // bit k: the previous verdict on coordinate k of this thread
  if constexpr (kPrevious) {
    if (group_first < tile_count) {
      const uint4* const words = reinterpret_cast<const uint4*>(p.prev_verdict + model_first / 32);
      const uint4 low = words[0], high = words[1];
      const uint32_t group_bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (uint32_t k = 0; k < kRows; ++k) {
        plus |= ((group_bits[k / 2] >> (k % 2 * kSumLanes + lane)) & 1u) << k;
      }
    }
  }

  uint32_t nonfinite = 0;  // bit k: coordinate k of this thread
  uint32_t mine = 0;       // the group's sixteen bits of row `lane`
#pragma unroll
  for (uint32_t k = 0; k < kRows; ++k) {
    bool finite = Finite(g[k]);
    if constexpr (kGiven) finite = finite && Finite(u[k]);
    const bool no_gradient = ((coins >> k) & 1u) != 0;
    float what = g[k];
    if constexpr (kGiven) what = u[k];
    if constexpr (kState) {
      what = fmaf(p.a, m[k], __fmul_rn(p.one_minus_a, g[k]));
      if (in_chunk(k) && finite && !no_gradient) {
        p.state[0][thread_first + k * kSumLanes] = fmaf(p.c, m[k], __fmul_rn(p.one_minus_c, g[k]));
      }
    }
    bool one = what > 0.0f;
    // Rare but where whole rows have no gradient; also a u that is NaN, which only a bad state
    // makes.
    if (in_chunk(k) && (!finite || no_gradient || !(one || what < 0.0f))) {
      const uint64_t at = thread_first + k * kSumLanes;
      one = ((OwnCoinBits(p.seed, p.round, p.share, at / 64) >> (at % 64)) & 1u) != 0;
    }
    const uint32_t word = __ballot_sync(kFullWarp, in_chunk(k) && one);
    if (lane == k) mine = word >> (threadIdx.x % 32 / kSumLanes * kSumLanes);
    // From here on only the sums need g and h: a zero adds nothing, and h becomes the probe's term.
    if (!finite) {
      nonfinite |= 1u << k;
      g[k] = 0.0f;
    }
    if constexpr (kProbe) h[k] = finite ? fabsf(__fsub_rn(g[k], h[k])) : 0.0f;
  }
  // A warp stores the 64 bytes of its two groups at once.
  if (group_first + lane * kSumLanes < tile_count) {
    p.bits[(tile_first + group_first) / kSumLanes + lane] = static_cast<uint16_t>(mine);
  }

  // The sums of each tensor in this tile; nearly always there is one.
  uint32_t begin = 0;
  for (uint32_t piece = 0; begin < tile_count; ++piece) {
    const uint64_t stop = p.tensors[first_tensor + piece + 1].first - block_first;
    const uint32_t end = stop < tile_count ? static_cast<uint32_t>(stop) : tile_count;
    double l1 = 0, l2 = 0, probe = 0, prev = 0;
    uint32_t bad = 0;
#pragma unroll
    for (uint32_t k = 0; k < kRows; ++k) {
      const uint32_t at = group_first + lane + k * kSumLanes;
      const bool in = at >= begin && at < end;
      const float value = in ? g[k] : 0.0f;
      const double magnitude = static_cast<double>(fabsf(value));
      l1 += magnitude;
      l2 = fma(magnitude, magnitude, l2);  // the product is exact: the same as separate operations
      if constexpr (kProbe) probe += static_cast<double>(in ? h[k] : 0.0f);
      if constexpr (kPrevious) {
        const bool up = ((plus >> k) & 1u) != 0;
        prev += up == (value >= 0.0f) ? magnitude : -magnitude;
      }
      if (in) bad += (nonfinite >> k) & 1u;
    }
    l1 = AddUpLanes(l1);
    l2 = AddUpLanes(l2);
    if constexpr (kProbe) probe = AddUpLanes(probe);
    if constexpr (kPrevious) prev = AddUpLanes(prev);
    bad = AddUpLanes(bad);
    const uint32_t which = piece % 2;
    if (lane == 0) {
      group_l1[which][group] = l1;
      group_l2[which][group] = l2;
      group_probe[which][group] = probe;
      group_prev[which][group] = prev;
      group_nonfinite[which][group] = bad;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      PackScalars sum;
      for (uint32_t k = 0; k < kGroups; ++k) {
        sum.Add({group_l1[which][k], group_l2[which][k], group_probe[which][k],
                 group_prev[which][k], group_nonfinite[which][k]});
      }
      p.pieces[blockIdx.x + first_tensor + piece] = sum;
    }
    begin = end;
  }
}

}  // namespace

cudaError_t LaunchPack(const PackArguments& p, cudaStream_t stream) {
  using Kernel = void (*)(PackArguments);
  // By where u comes from: g itself, g and the state, or the caller.
  constexpr Kernel kKernels[3][4] = {
      {PackKernel<false, false, false, false>, PackKernel<false, false, false, true>,
       PackKernel<false, false, true, false>, PackKernel<false, false, true, true>},
      {PackKernel<true, false, false, false>, PackKernel<true, false, false, true>,
       PackKernel<true, false, true, false>, PackKernel<true, false, true, true>},
      {PackKernel<false, true, false, false>, PackKernel<false, true, false, true>,
       PackKernel<false, true, true, false>, PackKernel<false, true, true, true>}};
  const unsigned which = (p.probe ? 2u : 0u) | (p.prev_verdict != nullptr ? 1u : 0u);
  return LaunchKernel(kKernels[p.given                 ? 2
                               : p.state[0] != nullptr ? 1
                                                       : 0][which],
                      Tiles(p.count), p, stream);
}

}  // namespace signvote::cuda
