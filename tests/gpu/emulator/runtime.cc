// The runtime's calls: memory, streams and events of emulated devices.

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/mutex.h"
#include "common/rng.h"
#include "tests/gpu/emulator/block_runner.h"
#include "tests/gpu/emulator/cuda_runtime.h"

namespace signvote::emulator {
namespace {

struct EventState {
  uint64_t recorded = 0;  // number of the last record that was queued
  uint64_t done = 0;      // number of the last record that was reached
};

struct Work {
  std::function<void()> run;             // or, if empty,
  std::shared_ptr<EventState> wait_for;  // wait until this event's record `number` is reached
  uint64_t number = 0;
};

}  // namespace
}  // namespace signvote::emulator

struct EmulatedStream {
  int device = 0;
  std::deque<signvote::emulator::Work> queue;
};
struct EmulatedEvent {
  int device = 0;
  std::shared_ptr<signvote::emulator::EventState> state;
};

namespace signvote::emulator {
namespace {

constexpr size_t kPage = 4096;
// Before and behind each buffer; address space alone.
constexpr size_t kGuard = size_t{1} << 20;
constexpr uint8_t kFill = 0xCD;
constexpr size_t kAlignment = 256;  // as cudaMalloc

constexpr int kDestroyed = -1;  // the device of a stream that was destroyed

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

struct Allocation {
  int device = 0;
  size_t bytes = 0;
  void* mapping = nullptr;
  size_t mapping_bytes = 0;
};

// Whatever the process knows. The lock is held while device code runs, so device code makes no
// runtime calls.
class Machine {
 public:
  Mutex mu;
  Rng rng ABSL_GUARDED_BY(mu){0, 0};
  uint64_t eagerness ABSL_GUARDED_BY(mu) = 1;
  cudaError_t dead ABSL_GUARDED_BY(mu) = cudaSuccess;  // what has ended the devices' work for good
  int devices ABSL_GUARDED_BY(mu) = kDevices;
  cudaError_t count_error ABSL_GUARDED_BY(mu) = cudaSuccess;
  std::map<const uint8_t*, Allocation> device_memory ABSL_GUARDED_BY(mu);
  std::map<const uint8_t*, size_t> host_memory ABSL_GUARDED_BY(mu);
  std::vector<std::unique_ptr<EmulatedStream>> streams ABSL_GUARDED_BY(mu);
  uint64_t calls[static_cast<size_t>(Call::kCount)] ABSL_GUARDED_BY(mu) = {};
  uint64_t fail_at[static_cast<size_t>(Call::kCount)] ABSL_GUARDED_BY(mu) = {};  // 0: never
  cudaError_t fail_with[static_cast<size_t>(Call::kCount)] ABSL_GUARDED_BY(mu) = {};

  Machine() {
    MutexLock lock(&mu);
    for (int device = 0; device < kDevices; ++device) {  // the default streams
      streams.push_back(std::make_unique<EmulatedStream>());
      streams.back()->device = device;
    }
  }

  // Counts the call; the error that a test has ordered for it, or that has ended the device before.
  cudaError_t Count(Call call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    const auto k = static_cast<size_t>(call);
    const bool fails = ++calls[k] == fail_at[k];
    if (dead != cudaSuccess || !fails) return dead;
    if (fail_with[k] == cudaErrorIllegalAddress || fail_with[k] == cudaErrorLaunchFailure) {
      dead = fail_with[k];
      for (const auto& s : streams) s->queue.clear();
    }
    return fail_with[k];
  }
  EmulatedStream* StreamOf(cudaStream_t stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    if (stream == nullptr) return streams[static_cast<size_t>(current_device)].get();
    const auto known = std::find_if(streams.begin(), streams.end(),
                                    [&](const auto& s) { return s.get() == stream; });
    return known == streams.end() || stream->device != current_device ? nullptr : stream;
  }
  cudaError_t Enqueue(cudaStream_t stream, Work work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    EmulatedStream* const s = StreamOf(stream);
    if (s == nullptr) return cudaErrorInvalidResourceHandle;
    s->queue.push_back(std::move(work));
    Wander();
    return cudaSuccess;
  }
  // One step of some stream; false when none can go on.
  bool Step() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::vector<EmulatedStream*> ready;
    for (const auto& s : streams) {
      if (s->queue.empty()) continue;
      const Work& next = s->queue.front();
      if (next.wait_for == nullptr || next.wait_for->done >= next.number) ready.push_back(s.get());
    }
    if (ready.empty()) return false;
    EmulatedStream* const s = ready[rng.Below(ready.size())];
    const Work work = std::move(s->queue.front());
    s->queue.pop_front();
    std::erase_if(streams,
                  [](const auto& old) { return old->device == kDestroyed && old->queue.empty(); });
    if (work.run) work.run();
    return true;
  }
  // Some steps or none; under some seeds nothing happens before somebody waits.
  void Wander() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    for (uint64_t steps = rng.Below(eagerness); steps > 0; --steps) Step();
  }
  // What a question that does not wait finds has gone on meanwhile.
  void GoOn() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    if (rng.Below(2) == 0) Step();
  }
  template <typename Condition>
  void StepUntil(const Condition& condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    while (!condition()) {
      if (!Step()) Trap("a wait that cannot end: all queued work waits for events");
    }
  }
  // The allocation that holds all of [memory, memory + bytes), or null.
  const Allocation* Find(const void* memory, size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    const auto* const at = static_cast<const uint8_t*>(memory);
    auto it = device_memory.upper_bound(at);
    if (it == device_memory.begin()) return nullptr;
    --it;
    const size_t offset = static_cast<size_t>(at - it->first);
    return offset <= it->second.bytes && bytes <= it->second.bytes - offset ? &it->second : nullptr;
  }
  // The bytes between the end of each buffer and its guard still hold what they were filled
  // with.
  void CheckRedZones() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    for (const auto& [memory, allocation] : device_memory) {
      const uint8_t* const end =
          static_cast<const uint8_t*>(allocation.mapping) + allocation.mapping_bytes - kGuard;
      for (const uint8_t* p = memory + allocation.bytes; p < end; ++p) {
        if (*p != kFill)
          Trap("something was written beyond a device buffer of %zu bytes", allocation.bytes);
      }
    }
  }
};

Machine& TheMachine() {
  static Machine* const machine = new Machine;  // lives as long as the program
  return *machine;
}

cudaError_t Answer(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

cudaError_t Enqueue(std::function<void()> kernel, unsigned blocks, unsigned threads,
                    cudaStream_t stream) {
  Machine& m = TheMachine();
  MutexLock lock(&m.mu);
  if (const cudaError_t error = m.Count(Call::kLaunch); error != cudaSuccess) return Answer(error);
  if (blocks == 0) return Answer(cudaErrorInvalidConfiguration);
  // Step() runs it under the lock.
  const auto run = [&m, kernel = std::move(kernel), blocks, threads]()
                       ABSL_NO_THREAD_SAFETY_ANALYSIS {
                         RunBlocks(kernel, blocks, threads, &m.rng);
                         m.CheckRedZones();
                       };
  return Answer(m.Enqueue(stream, {.run = run}));
}

void Reset(uint64_t seed) {
  Machine& m = TheMachine();
  MutexLock lock(&m.mu);
  while (m.Step()) {
  }
  m.rng = Rng(seed, 0);
  m.eagerness = 1 + m.rng.Below(4);
  m.dead = cudaSuccess;
  m.devices = kDevices;
  m.count_error = cudaSuccess;
  std::fill(std::begin(m.calls), std::end(m.calls), 0);
  std::fill(std::begin(m.fail_at), std::end(m.fail_at), 0);
  last_error = cudaSuccess;
}

void SetDeviceCount(int devices, cudaError_t error) {
  Machine& m = TheMachine();
  MutexLock lock(&m.mu);
  SIGNVOTE_CHECK(devices <= kDevices);
  m.devices = devices;
  m.count_error = error;
}

void FailNext(Call call, uint64_t n, cudaError_t error) {
  Machine& m = TheMachine();
  MutexLock lock(&m.mu);
  const auto k = static_cast<size_t>(call);
  m.fail_at[k] = m.calls[k] + n;
  m.fail_with[k] = error;
}

uint64_t Calls(Call call) {
  Machine& m = TheMachine();
  MutexLock lock(&m.mu);
  return m.calls[static_cast<size_t>(call)];
}

size_t DeviceBytes() {
  Machine& m = TheMachine();
  MutexLock lock(&m.mu);
  size_t bytes = 0;
  for (const auto& [memory, allocation] : m.device_memory) bytes += allocation.bytes;
  return bytes;
}

size_t HostBytes() {
  Machine& m = TheMachine();
  MutexLock lock(&m.mu);
  size_t bytes = 0;
  for (const auto& [memory, size] : m.host_memory) bytes += size;
  return bytes;
}

bool IsDeviceMemory(const void* memory) {
  Machine& m = TheMachine();
  MutexLock lock(&m.mu);
  return m.Find(memory, 1) != nullptr;
}

}  // namespace signvote::emulator

using signvote::MutexLock;
using signvote::emulator::Answer;
using signvote::emulator::Call;
using signvote::emulator::kDestroyed;
using signvote::emulator::TheMachine;

cudaError_t cudaGetDeviceCount(int* count) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  *count = m.devices;
  if (m.count_error != cudaSuccess) return Answer(m.count_error);
  return m.devices == 0 ? Answer(cudaErrorNoDevice) : cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (device < 0 || device >= m.devices) return Answer(cudaErrorInvalidDevice);
  signvote::emulator::current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (device < 0 || device >= m.devices) return Answer(cudaErrorInvalidDevice);
  std::snprintf(properties->name, sizeof(properties->name), "emulated GPU %d", device);
  properties->totalGlobalMem = size_t{8} << 30;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  using signvote::emulator::kGuard;
  using signvote::emulator::kPage;
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  *memory = nullptr;
  if (const cudaError_t error = m.Count(Call::kMalloc); error != cudaSuccess) return Answer(error);
  if (bytes == 0) return cudaSuccess;
  // As near to the guard behind it as the alignment allows.
  const size_t room = (bytes + kPage - 1) / kPage * kPage;
  signvote::emulator::Allocation a;
  a.device = signvote::emulator::current_device;
  a.bytes = bytes;
  a.mapping_bytes = room + 2 * kGuard;
  a.mapping = mmap(nullptr, a.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (a.mapping == MAP_FAILED) return Answer(cudaErrorMemoryAllocation);
  auto* const inside = static_cast<uint8_t*>(a.mapping) + kGuard;
  SIGNVOTE_CHECK(mprotect(inside, room, PROT_READ | PROT_WRITE) == 0);
  std::memset(inside, signvote::emulator::kFill, room);
  uint8_t* const start =
      inside + (room - bytes) / signvote::emulator::kAlignment * signvote::emulator::kAlignment;
  m.device_memory[start] = a;
  *memory = start;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (memory == nullptr) return cudaSuccess;
  const auto it = m.device_memory.find(static_cast<uint8_t*>(memory));
  if (it == m.device_memory.end()) return Answer(cudaErrorInvalidValue);
  m.CheckRedZones();
  munmap(it->second.mapping, it->second.mapping_bytes);
  m.device_memory.erase(it);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  *memory = nullptr;
  if (const cudaError_t error = m.Count(Call::kHostAlloc); error != cudaSuccess)
    return Answer(error);
  void* const p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  SIGNVOTE_CHECK(p != nullptr);
  std::memset(p, signvote::emulator::kFill, bytes);
  m.host_memory[static_cast<uint8_t*>(p)] = bytes;
  *memory = p;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (memory == nullptr) return cudaSuccess;
  const auto it = m.host_memory.find(static_cast<uint8_t*>(memory));
  if (it == m.host_memory.end()) return Answer(cudaErrorInvalidValue);
  std::free(memory);
  m.host_memory.erase(it);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (const cudaError_t error = m.Count(Call::kCopy); error != cudaSuccess) return Answer(error);
  const auto on_device = [&](const void* p) ABSL_EXCLUSIVE_LOCKS_REQUIRED(m.mu) {
    const auto* const a = m.Find(p, bytes);
    return a != nullptr && a->device == signvote::emulator::current_device;
  };
  if ((kind != cudaMemcpyHostToDevice && !on_device(from)) ||
      (kind != cudaMemcpyDeviceToHost && !on_device(to)) ||
      (kind == cudaMemcpyHostToDevice && m.Find(from, 1) != nullptr) ||
      (kind == cudaMemcpyDeviceToHost && m.Find(to, 1) != nullptr)) {
    return Answer(cudaErrorInvalidValue);
  }
  return Answer(m.Enqueue(stream, {.run = [=] {
                            if (bytes > 0) std::memcpy(to, from, bytes);
                          }}));
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (const cudaError_t error = m.Count(Call::kMemset); error != cudaSuccess) return Answer(error);
  if (m.Find(memory, bytes) == nullptr) return Answer(cudaErrorInvalidValue);
  return Answer(m.Enqueue(stream, {.run = [=] { std::memset(memory, value, bytes); }}));
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (const cudaError_t error = m.Count(Call::kStream); error != cudaSuccess) return Answer(error);
  m.streams.push_back(std::make_unique<EmulatedStream>());
  *stream = m.streams.back().get();
  (*stream)->device = signvote::emulator::current_device;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (stream == nullptr || m.StreamOf(stream) == nullptr)
    return Answer(cudaErrorInvalidResourceHandle);
  // As on a GPU, what is queued still runs.
  stream->device = kDestroyed;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (const cudaError_t error = m.Count(Call::kSynchronize); error != cudaSuccess)
    return Answer(error);
  EmulatedStream* const s = m.StreamOf(stream);
  if (s == nullptr) return Answer(cudaErrorInvalidResourceHandle);
  m.StepUntil([s] { return s->queue.empty(); });
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (const cudaError_t error = m.Count(Call::kEvent); error != cudaSuccess) return Answer(error);
  return Answer(
      m.Enqueue(stream, {.run = {}, .wait_for = event->state, .number = event->state->recorded}));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (const cudaError_t error = m.Count(Call::kEvent); error != cudaSuccess) return Answer(error);
  *event = new EmulatedEvent{.device = signvote::emulator::current_device,
                             .state = std::make_shared<signvote::emulator::EventState>()};
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (const cudaError_t error = m.Count(Call::kEvent); error != cudaSuccess) return Answer(error);
  if (event->device != signvote::emulator::current_device)
    return Answer(cudaErrorInvalidResourceHandle);
  const auto state = event->state;
  const uint64_t number = ++state->recorded;
  return Answer(
      m.Enqueue(stream, {.run = [state, number] { state->done = std::max(state->done, number); }}));
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (const cudaError_t error = m.Count(Call::kEvent); error != cudaSuccess) return Answer(error);
  m.GoOn();
  return Answer(event->state->done >= event->state->recorded ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  auto& m = TheMachine();
  MutexLock lock(&m.mu);
  if (const cudaError_t error = m.Count(Call::kSynchronize); error != cudaSuccess)
    return Answer(error);
  const auto state = event->state;
  m.StepUntil([&state] { return state->done >= state->recorded; });
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  return std::exchange(signvote::emulator::last_error, cudaSuccess);
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
  }
  return "unknown error";
}
