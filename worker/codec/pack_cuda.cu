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

// ---- the formation: pack.h, operation by operation -----------------------------------------------

__device__ inline float Widen(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }
__device__ inline uint16_t Upper(uint32_t size, uint32_t rounding) {
  const uint32_t upper = (size + rounding) >> 16;
  return static_cast<uint16_t>(upper < 0x7F7Fu ? upper : 0x7F7Fu);
}
__device__ inline uint16_t NarrowNearest(float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t size = bits & 0x7FFFFFFFu;
  return static_cast<uint16_t>(Upper(size, 0x7FFFu + (size >> 16 & 1u)) | (bits >> 16 & 0x8000u));
}
__device__ inline uint16_t NarrowUpwards(float value) {
  return Upper(__float_as_uint(value) & 0x7FFFFFFFu, 0xFFFFu);
}
__device__ inline float LoadKept(const void* plane, bool bf16, uint64_t at) {
  if (plane == nullptr) return 0.0f;
  return bf16 ? Widen(static_cast<const uint16_t*>(plane)[at])
              : static_cast<const float*>(plane)[at];
}

// What is not a number stays so.
constexpr float kLargest = 3.402823466e38f;
__device__ inline float AtMostLargest(float v) {
  if (kLargest < v) return kLargest;
  return v;
}
__device__ inline float WithinLargest(float v) {
  const float most = AtMostLargest(v);
  return -kLargest > most ? -kLargest : most;
}

struct Update {
  float u, m, v;
};
// What becomes of one coordinate whose u is not given.
__device__ inline Update UpdateOf(const PackArguments& p, float g, float m0, float v0) {
  const Formation& f = p.formation;
  const float x = __fmul_rn(p.clip, g);
  Update next{0.0f, WithinLargest(fmaf(p.c, m0, __fmul_rn(f.WeightOfGradient(p.c), x))), 0.0f};
  if (f.update != Formation::Update::kAdam) {
    next.u = fmaf(p.a, m0, __fmul_rn(f.WeightOfGradient(p.a), x));
    return next;
  }
  next.v = AtMostLargest(fmaf(f.c2, v0, __fmul_rn(1.0f - f.c2, __fmul_rn(x, x))));
  const float root = __fsqrt_rn(__fmul_rn(next.v, f.square_correction));
  next.u = __fdiv_rn(__fmul_rn(next.m, f.mean_correction), __fadd_rn(root, f.epsilon));
  return next;
}

__device__ inline bool Finite(float v) { return fabsf(v) <= kLargest; }

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

// kFormed: what is signed is formed, with kGiven from a u that is given. One block of such a kernel
// may have a multiprocessor to itself: left alone, ptxas would rather spill than have fewer.
template <bool kState, bool kGiven, bool kFormed, bool kProbe, bool kPrevious>
__global__ void __launch_bounds__(kThreads, kFormed ? 1 : 0) PackKernel(PackArguments p) {
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
  constexpr bool kMoves = kFormed && !kGiven;  // m and v
  float g[kRows], m[kRows], u[kRows], h[kRows], v[kRows], r[kRows];
  const bool squares = kMoves && p.formation.update == Formation::Update::kAdam;
  const bool kept_envelope = kFormed && p.formation.envelope == Envelope::kCoordinate;
  uint32_t coins = 0;  // bit k: coordinate k has nothing to sign
#pragma unroll
  for (uint32_t k = 0; k < kRows; ++k) {
    g[k] = 0.0f;
    if constexpr (kState) m[k] = 0.0f;
    if constexpr (kGiven) u[k] = 0.0f;
    if constexpr (kProbe) h[k] = 0.0f;
    if constexpr (kMoves) m[k] = v[k] = 0.0f;
    if constexpr (kFormed) r[k] = 1.0f;
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
    if constexpr (kState) m[k] = static_cast<const float*>(p.state[0])[at];
    if constexpr (kMoves) {
      m[k] = LoadKept(p.state[0], p.formation.bf16, at);
      if (squares) v[k] = static_cast<const float*>(p.state[1])[at];
      if (p.tensors[tensor].sparse != 0 && g[k] == 0.0f) coins |= 1u << k;
    }
    if constexpr (kFormed) {
      // Where u is given r waits until it is used: both and their places do not fit the registers.
      if (kMoves && kept_envelope) r[k] = LoadKept(p.state[2], p.formation.bf16, at);
      if (p.envelopes != nullptr) r[k] = p.envelopes[tensor];
    }
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
  // Four neighbouring coordinates share a word of uniforms: each of their threads makes that of one
  // row in four.
  uint64_t uniforms = 0;
#pragma unroll
  for (uint32_t k = 0; k < kRows; ++k) {
    [[maybe_unused]] uint16_t uniform = 0;
    if constexpr (kFormed) {
      if (p.formation.envelope != Envelope::kNone) {
        if (k % 4 == 0) {
          const uint64_t row = thread_first + (k + lane % 4) * kSumLanes;
          uniforms = UniformBits(p.seed, p.round, p.share, row / 4);
        }
        const uint64_t word = __shfl_sync(kFullWarp, uniforms, threadIdx.x % 32 / 4 * 4 + k % 4);
        uniform = static_cast<uint16_t>(word >> (16 * (lane % 4)));
      }
    }
    bool finite = Finite(g[k]);
    if constexpr (kGiven) finite = finite && Finite(u[k]);
    const bool no_gradient = ((coins >> k) & 1u) != 0;
    float what = g[k];
    if constexpr (kGiven) what = u[k];
    if constexpr (kState) {
      what = fmaf(p.a, m[k], __fmul_rn(1.0f - p.a, g[k]));
      if (in_chunk(k) && finite && !no_gradient) {
        static_cast<float*>(p.state[0])[thread_first + k * kSumLanes] =
            fmaf(p.c, m[k], __fmul_rn(1.0f - p.c, g[k]));
      }
    }
    if constexpr (kFormed) {
      const uint64_t at = thread_first + k * kSumLanes;
      const bool moves = in_chunk(k) && finite && !no_gradient;
      if constexpr (kMoves) {
        const Update next = UpdateOf(p, g[k], m[k], v[k]);
        what = next.u;
        if (moves && p.state[0] != nullptr) {
          if (p.formation.bf16) {
            static_cast<uint16_t*>(p.state[0])[at] = NarrowNearest(next.m);
          } else {
            static_cast<float*>(p.state[0])[at] = next.m;
          }
        }
        if (moves && squares) static_cast<float*>(p.state[1])[at] = next.v;
      }
      if (kept_envelope) {
        if (kGiven && in_chunk(k)) r[k] = LoadKept(p.state[2], p.formation.bf16, at);
        const float decayed = __fmul_rn(p.formation.envelope_decay, r[k]), size = fabsf(what);
        r[k] = AtMostLargest(decayed > size ? decayed : size);
        if (moves) {
          if (p.formation.bf16) {
            static_cast<uint16_t*>(p.state[2])[at] = NarrowUpwards(r[k]);
          } else {
            static_cast<float*>(p.state[2])[at] = r[k];
          }
        }
      }
      if (p.formation.envelope != Envelope::kNone) what = fmaf(r[k], NoiseOf(uniform), what);
      if (!Finite(what)) what = 0.0f;  // the own coin decides
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

// A block is a tile of the tensor.
__global__ void __launch_bounds__(kThreads) LargestKernel(LargestArguments a) {
  const PackArguments& p = a.pack;
  const TensorInputs inputs = p.inputs[0];
  const bool sparse = p.tensors[0].sparse != 0;
  float largest = 0.0f;
  for (uint32_t k = 0; k < kTileCoordinates / kThreads; ++k) {
    const uint64_t offset = uint64_t{blockIdx.x} * kTileCoordinates + k * kThreads + threadIdx.x;
    if (offset >= a.count) continue;
    const uint64_t at = a.first + offset;
    const float g = inputs.g != nullptr ? inputs.g[offset] : 0.0f;
    float u = 0.0f;
    if (p.given) {
      u = inputs.u[offset];
      if (!Finite(g) || !Finite(u)) continue;
    } else {
      if (inputs.g == nullptr || !Finite(g) || (sparse && g == 0.0f)) continue;
      const bool adam = p.formation.update == Formation::Update::kAdam;
      u = UpdateOf(p, g, LoadKept(p.state[0], p.formation.bf16, at),
                   adam ? static_cast<const float*>(p.state[1])[at] : 0.0f)
              .u;
    }
    const float size = fabsf(u);
    largest = size > largest ? size : largest;
  }
  for (uint32_t step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kFullWarp, largest, step);
    largest = other > largest ? other : largest;
  }
  // Of numbers that are not negative the bits are in order as well.
  if (threadIdx.x % 32 == 0)
    atomicMax(reinterpret_cast<unsigned*>(a.largest), __float_as_uint(largest));
}

// A block is a tile of the tensor.
__global__ void __launch_bounds__(kThreads) LocalStepKernel(LocalStepArguments a) {
  const PackArguments& p = a.pack;
  const bool sparse = p.tensors[0].sparse != 0;
  for (uint32_t k = 0; k < kTileCoordinates / kThreads; ++k) {
    const uint64_t offset = uint64_t{blockIdx.x} * kTileCoordinates + k * kThreads + threadIdx.x;
    if (offset >= a.count) continue;
    const float g = a.g[offset];
    if (!Finite(g) || (sparse && g == 0.0f)) continue;
    const uint64_t at = a.first + offset;
    float* const squares = p.formation.update == Formation::Update::kAdam
                               ? static_cast<float*>(p.state[1]) + at
                               : nullptr;
    const Update next = UpdateOf(p, g, LoadKept(p.state[0], p.formation.bf16, at),
                                 squares != nullptr ? *squares : 0.0f);
    if (squares != nullptr) *squares = next.v;
    if (p.state[0] != nullptr) {
      if (p.formation.bf16) {
        static_cast<uint16_t*>(p.state[0])[at] = NarrowNearest(next.m);
      } else {
        static_cast<float*>(p.state[0])[at] = next.m;
      }
    }
    if (!Finite(next.u) || next.u == 0.0f) continue;
    const float y = a.y[offset];
    if (p.formation.StepsByUpdate()) {
      a.y[offset] = fmaf(-a.length, next.u, y);
      continue;
    }
    a.y[offset] = next.u > 0.0f ? __fsub_rn(y, a.length) : __fadd_rn(y, a.length);
  }
}

}  // namespace

cudaError_t LaunchLocalStep(const LocalStepArguments& a, cudaStream_t stream) {
  return LaunchKernel(LocalStepKernel, Tiles(a.count), a, stream);
}

cudaError_t LaunchLargest(const LargestArguments& a, cudaStream_t stream) {
  return LaunchKernel(LargestKernel, Tiles(a.count), a, stream);
}

cudaError_t LaunchPack(const PackArguments& p, cudaStream_t stream) {
  using Kernel = void (*)(PackArguments);
  // By where what is signed comes from: g itself, g and the state, the caller; formed from either.
#define SIGNVOTE_KERNELS(state, given, formed)                                                     \
  {                                                                                                \
    PackKernel<state, given, formed, false, false>, PackKernel<state, given, formed, false, true>, \
        PackKernel<state, given, formed, true, false>,                                             \
        PackKernel<state, given, formed, true, true>,                                              \
  }
  constexpr Kernel kKernels[5][4] = {
      SIGNVOTE_KERNELS(false, false, false), SIGNVOTE_KERNELS(true, false, false),
      SIGNVOTE_KERNELS(false, true, false), SIGNVOTE_KERNELS(false, false, true),
      SIGNVOTE_KERNELS(false, true, true)};
#undef SIGNVOTE_KERNELS
  const unsigned which = (p.probe ? 2u : 0u) | (p.prev_verdict != nullptr ? 1u : 0u);
  const unsigned from = p.formed                ? (p.given ? 4u : 3u)
                        : p.given               ? 2u
                        : p.state[0] != nullptr ? 1u
                                                : 0u;
  return LaunchKernel(kKernels[from][which], Tiles(p.count), p, stream);
}

}  // namespace signvote::cuda
