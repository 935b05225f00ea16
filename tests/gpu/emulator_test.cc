// The emulator finds what it is there to find.

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <thread>
#include <vector>

namespace signvote::emulator {
namespace {

constexpr unsigned kFull = 0xFFFFFFFFu;

struct Numbers {
  const int* in;
  int* out;
};

// Runs a kernel of one block over `count` numbers 0, 1, 2, … and returns what it wrote.
std::vector<int> RunKernel(void (*kernel)(Numbers), unsigned threads, size_t count,
                           unsigned blocks = 1) {
  std::vector<int> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  void *in = nullptr, *out = nullptr;
  EXPECT_EQ(cudaMalloc(&in, count * sizeof(int)), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&out, count * sizeof(int)), cudaSuccess);
  EXPECT_EQ(
      cudaMemcpyAsync(in, numbers.data(), count * sizeof(int), cudaMemcpyHostToDevice, nullptr),
      cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(out, 0, count * sizeof(int), nullptr), cudaSuccess);
  EXPECT_EQ(Launch(kernel, blocks, threads, Numbers{static_cast<int*>(in), static_cast<int*>(out)},
                   nullptr),
            cudaSuccess);
  std::vector<int> result(count);
  EXPECT_EQ(
      cudaMemcpyAsync(result.data(), out, count * sizeof(int), cudaMemcpyDeviceToHost, nullptr),
      cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  EXPECT_EQ(cudaFree(in), cudaSuccess);
  EXPECT_EQ(cudaFree(out), cudaSuccess);
  return result;
}

template <bool kBarrier>
__global__ void Reverse(Numbers n) {
  __shared__ int numbers[256];
  numbers[threadIdx.x] = n.in[threadIdx.x];
  if constexpr (kBarrier) __syncthreads();
  n.out[threadIdx.x] = numbers[blockDim.x - 1 - threadIdx.x];
  __syncthreads();
  numbers[threadIdx.x] = -1;  // the next run finds no leftovers
}

TEST(EmulatorTest, AMissingBarrierGivesOtherResultsUnderOtherSeeds) {
  std::vector<int> reversed(256);
  for (int i = 0; i < 256; ++i) reversed[static_cast<size_t>(i)] = 255 - i;
  std::set<std::vector<int>> seen;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Reset(seed);
    EXPECT_EQ(RunKernel(Reverse<true>, 256, 256), reversed);
    seen.insert(RunKernel(Reverse<false>, 256, 256));
  }
  EXPECT_GT(seen.size(), 1u);
  EXPECT_EQ(seen.count(reversed), 0u);
}

__global__ void Collectives(Numbers n) {
  const int value = n.in[threadIdx.x];
  const unsigned odd = __ballot_sync(kFull, value % 2 == 1);
  const int down = __shfl_down_sync(kFull, value, 4, 16);
  const int up = __shfl_up_sync(kFull, value, 1);
  const int exchanged = __shfl_xor_sync(kFull, value, 1);
  const int first = __shfl_sync(kFull, value, 0);
  const bool any = __any_sync(kFull, value == 7), all = __all_sync(kFull, value >= first);
  __syncwarp();
  n.out[threadIdx.x] = odd == 0xAAAAAAAAu
                           ? down + 1000 * (up + 1000 * (exchanged - value)) + (all ? 0 : 1) +
                                 (any == (threadIdx.x / 32 == 0) ? 0 : 2)
                           : -1;
}

TEST(EmulatorTest, WarpCallsGiveWhatAGpuGives) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Reset(seed);
    const std::vector<int> got = RunKernel(Collectives, 64, 64);
    for (int i = 0; i < 64; ++i) {
      const int down = i % 16 + 4 < 16 ? i + 4 : i;
      const int up = i % 32 >= 1 ? i - 1 : i;
      const int exchanged = i ^ 1;
      EXPECT_EQ(got[static_cast<size_t>(i)], down + 1000 * (up + 1000 * (exchanged - i))) << i;
    }
  }
}

__global__ void PartialMask(Numbers) {
  if (threadIdx.x < 16) __ballot_sync(0xFFFFu, true);
}
__global__ void HalfTheWarp(Numbers) {
  if (threadIdx.x < 16) __ballot_sync(kFull, true);
}
__global__ void TwoPlaces(Numbers) {
  if (threadIdx.x < 16) {
    __ballot_sync(kFull, true);
  } else {
    __ballot_sync(kFull, false);
  }
}
__global__ void HalfTheBlock(Numbers) {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void TwoBarriers(Numbers) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void OneTooMany(Numbers n) { n.out[threadIdx.x + 1] = 1; }
__global__ void FarAway(Numbers n) { n.out[threadIdx.x + 4096] = 1; }

TEST(EmulatorDeathTest, MistakesEndTheProgramWithTheirPlace) {
  Reset(1);
  EXPECT_DEATH(RunKernel(PartialMask, 32, 32),
               "emulator_test.cc:[0-9]+: __ballot_sync with mask 0x0000ffff");
  EXPECT_DEATH(
      RunKernel(HalfTheWarp, 32, 32),
      "of 32 threads 16 ended, 16 wait in a warp's call .__ballot_sync, .*emulator_test.cc");
  EXPECT_DEATH(RunKernel(TwoPlaces, 32, 32), "lanes of one warp part ways");
  EXPECT_DEATH(RunKernel(HalfTheBlock, 64, 64),
               "of 64 threads 32 ended, 0 wait .*, 32 at __syncthreads");
  EXPECT_DEATH(RunKernel(TwoBarriers, 64, 64), "threads of one block part ways");
  EXPECT_DEATH(RunKernel(OneTooMany, 32, 31), "beyond a device buffer of 124 bytes");
  // The guard: a signal, or a sanitizer's words about one.
  EXPECT_DEATH(RunKernel(FarAway, 32, 32), "");
}

// Copies a buffer on a second stream after a kernel on the first; `ordered`: with an event between
// them.
bool CopySeesTheKernel(uint64_t seed, bool ordered) {
  Reset(seed);
  cudaStream_t work = nullptr, copies = nullptr;
  cudaEvent_t done = nullptr;
  void* out = nullptr;
  std::vector<int> result(64, -1);
  EXPECT_EQ(cudaStreamCreateWithFlags(&work, cudaStreamNonBlocking), cudaSuccess);
  EXPECT_EQ(cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking), cudaSuccess);
  EXPECT_EQ(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&out, 256), cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(out, 0, 256, work), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(done, work), cudaSuccess);
  if (ordered) {
    EXPECT_EQ(cudaStreamWaitEvent(copies, done), cudaSuccess);
  }
  EXPECT_EQ(cudaMemcpyAsync(result.data(), out, 256, cudaMemcpyDeviceToHost, copies), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(copies), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(work), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(work), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(copies), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(done), cudaSuccess);
  EXPECT_EQ(cudaFree(out), cudaSuccess);
  return result == std::vector<int>(64, 0);
}

TEST(EmulatorTest, AMissingWaitBetweenStreamsShows) {
  int seen = 0;
  for (uint64_t seed = 0; seed < 32; ++seed) {
    EXPECT_TRUE(CopySeesTheKernel(seed, true)) << seed;
    seen += CopySeesTheKernel(seed, false);
  }
  EXPECT_GT(seen, 0);
  EXPECT_LT(seen, 32);
}

TEST(EmulatorTest, AnotherDevicesStreamIsRefused) {
  Reset(1);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  std::thread([stream] {  // a new thread's device is 0
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
  })
      .join();
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(kDevices), cudaErrorInvalidDevice);
}

TEST(EmulatorTest, TheCallThatWasToFailFailsAlone) {
  Reset(1);
  FailNext(Call::kMalloc, 2, cudaErrorMemoryAllocation);
  void* memory[3] = {};
  EXPECT_EQ(cudaMalloc(&memory[0], 8), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&memory[1], 8), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&memory[2], 8), cudaSuccess);
  EXPECT_EQ(Calls(Call::kMalloc), 3u);
  for (void* p : memory) EXPECT_EQ(cudaFree(p), cudaSuccess);
}

}  // namespace
}  // namespace signvote::emulator
