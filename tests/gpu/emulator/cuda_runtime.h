#pragma once
// A small CUDA of our own for machines without a GPU: device code is compiled by the host's
// compiler and run thread by thread, the runtime's calls are played by runtime.cc. Test code only;
// docs/gpu.md, "The emulator".
//
// What it is stricter about than a GPU, so that mistakes show:
//   * Threads of a block run one at a time, from one synchronisation to the next, in an order drawn
//   from a seed; so do
//     blocks. A missing barrier gives other results under other seeds.
//   * A *_sync call must name the full warp, and all 32 lanes must arrive at the same call of the
//   same line; all threads
//     of a block must arrive at the same __syncthreads(). Else the program ends with a message that
//     says who stood where.
//   * Queued work runs as late as a wait allows or earlier, streams interleaved as the seed says;
//   freeing memory or a
//     stream waits for nothing. A missing wait shows.
//   * The calling thread's current device must be the one that a stream or a buffer belongs to.
//   * Device memory lies between pages that nobody may touch and is filled with 0xCD when new;
//   touching what was freed
//     ends the program.
//
// Threads: calls may come from several threads; one runs at a time.

#include <math.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

// The runtime's types, as far as they are used.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
};
using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
};
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaHostAllocDefault = 0;

// The runtime's calls, as far as they are used.

cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

// Device code.

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
using dim3 = uint3;
struct uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
extern uint3 threadIdx, blockIdx;  // of the device thread that runs
extern dim3 blockDim, gridDim;

// fmaf, fma and fabsf are the C library's. Separate roundings: this library is compiled with
// -ffp-contract=off.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }

// One thread runs at a time.
inline unsigned atomicMax(unsigned* at, unsigned value) {
  const unsigned old = *at;
  *at = value > old ? value : old;
  return old;
}

namespace signvote::emulator {

struct Place {
  const char* file = "";
  unsigned line = 0;
};

enum class WarpCall { kBallot, kShuffle, kSync };
// Deposits `value`, waits for the warp's other lanes and returns what all 32 deposited.
const uint64_t* MeetWarp(WarpCall call, unsigned mask, uint64_t value, Place where);
void MeetBlock(Place where);
unsigned Lane();

template <typename T>
T Shuffle(unsigned mask, T value, unsigned from_lane, Place where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(value));
  word = MeetWarp(WarpCall::kShuffle, mask, word, where)[from_lane];
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

// One kernel run of `blocks` blocks of `threads` threads, queued on `stream`.
cudaError_t Enqueue(std::function<void()> kernel, unsigned blocks, unsigned threads,
                    cudaStream_t stream);
template <typename Arguments>
cudaError_t Launch(void (*kernel)(Arguments), unsigned blocks, unsigned threads,
                   const Arguments& arguments, cudaStream_t stream) {
  return Enqueue([kernel, arguments] { kernel(arguments); }, blocks, threads, stream);
}

// Control, for tests.

inline constexpr int kDevices = 2;
// A calm machine that draws everything from `seed`: nothing queued, no faults to come. Memory that
// is still allocated stays so. REQUIRES: nothing is queued that reads memory which is gone.
void Reset(uint64_t seed);
void SetDeviceCount(int devices, cudaError_t error = cudaSuccess);
// The calls that can be made to fail.
enum class Call {
  kMalloc,
  kHostAlloc,
  kCopy,
  kMemset,
  kLaunch,
  kEvent,
  kStream,
  kSynchronize,
  kCount
};
// The n-th call (1: the next) of this kind answers `error` and does nothing. An illegal address or
// a launch failure ends all work for good, as on a GPU: what was queued never runs and every later
// call answers the same, until Reset().
void FailNext(Call call, uint64_t n, cudaError_t error);
uint64_t Calls(Call call);  // since Reset()
size_t DeviceBytes();       // allocated now, on all devices
size_t HostBytes();         // page-locked now
bool IsDeviceMemory(const void* memory);

}  // namespace signvote::emulator

inline unsigned __ballot_sync(unsigned mask, bool value, const char* file = __builtin_FILE(),
                              unsigned line = __builtin_LINE()) {
  const uint64_t* const votes = signvote::emulator::MeetWarp(signvote::emulator::WarpCall::kBallot,
                                                             mask, value, {file, line});
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane) ballot |= static_cast<unsigned>(votes[lane]) << lane;
  return ballot;
}
inline bool __any_sync(unsigned mask, bool value, const char* file = __builtin_FILE(),
                       unsigned line = __builtin_LINE()) {
  return __ballot_sync(mask, value, file, line) != 0;
}
inline bool __all_sync(unsigned mask, bool value, const char* file = __builtin_FILE(),
                       unsigned line = __builtin_LINE()) {
  return __ballot_sync(mask, value, file, line) == 0xFFFFFFFFu;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, unsigned from, unsigned width = 32,
              const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
  const unsigned lane = signvote::emulator::Lane();
  return signvote::emulator::Shuffle(mask, value, lane / width * width + from % width,
                                     {file, line});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, unsigned width = 32,
                   const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
  const unsigned lane = signvote::emulator::Lane();
  return signvote::emulator::Shuffle(
      mask, value, lane % width + delta < width ? lane + delta : lane, {file, line});
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, unsigned width = 32,
                 const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
  const unsigned lane = signvote::emulator::Lane();
  return signvote::emulator::Shuffle(mask, value, lane % width >= delta ? lane - delta : lane,
                                     {file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits, unsigned width = 32,
                  const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
  const unsigned lane = signvote::emulator::Lane();
  const unsigned from = lane ^ bits;
  return signvote::emulator::Shuffle(mask, value, from / width == lane / width ? from : lane,
                                     {file, line});
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, const char* file = __builtin_FILE(),
                       unsigned line = __builtin_LINE()) {
  signvote::emulator::MeetWarp(signvote::emulator::WarpCall::kSync, mask, 0, {file, line});
}
inline void __syncthreads(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
  signvote::emulator::MeetBlock({file, line});
}
