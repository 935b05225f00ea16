#pragma once
// Memory, streams and events of a GPU, owned; each call of CUDA's runtime checked.
//
// Threads: as the runtime: any thread whose current device is the one that the object was made on
// (UseDevice()).
// Failure: Make() and the helpers return RESOURCE_EXHAUSTED when there is no memory and INTERNAL
// otherwise, with the
//          call's name and CUDA's words. Destructors ignore errors: nobody could act on them.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory_resource>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "common/status.h"
#include "worker/codec/cuda_kernels.h"

namespace signvote::cuda {

// OK for cudaSuccess.
absl::Status ToStatus(cudaError_t error, const char* call);
#define SIGNVOTE_CUDA(call, ...) ::signvote::cuda::ToStatus(call(__VA_ARGS__), #call)

// What the objects of one GPU share.
struct Device {
  int ordinal = 0;
  // The cudaStream_t on which the calling thread queues its work; null is the default stream.
  std::function<void*()> current_stream;

  // Makes it the calling thread's current device. Every entry from outside calls it: threads come
  // and go.
  absl::Status Use() const;
  cudaStream_t stream() const { return static_cast<cudaStream_t>(current_stream()); }
};

// `count` values in device memory, uninitialised.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  static absl::StatusOr<DeviceBuffer> Make(size_t count) {
    DeviceBuffer buffer;
    void* memory = nullptr;
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMalloc, &memory, count * sizeof(T)));
    buffer.data_ = static_cast<T*>(memory);
    buffer.count_ = count;
    return buffer;
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~DeviceBuffer() { (void)cudaFree(data_); }  // nobody could act on an error

  T* data() const { return data_; }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

// `count` values in page-locked memory of the host, uninitialised.
template <typename T>
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static absl::StatusOr<PinnedBuffer> Make(size_t count) {
    PinnedBuffer buffer;
    void* memory = nullptr;
    SIGNVOTE_RETURN_IF_ERROR(
        SIGNVOTE_CUDA(cudaHostAlloc, &memory, count * sizeof(T), cudaHostAllocDefault));
    buffer.data_ = static_cast<T*>(memory);
    return buffer;
  }
  PinnedBuffer(PinnedBuffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~PinnedBuffer() { (void)cudaFreeHost(data_); }  // nobody could act on an error

  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

// A stream that the default stream does not wait for, nor the reverse.
class Stream {
 public:
  Stream() = default;
  static absl::StatusOr<Stream> Make();
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~Stream() {
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);  // nobody could act on an error
  }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaEvent {
 public:
  CudaEvent() = default;
  static absl::StatusOr<CudaEvent> Make();
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~CudaEvent() {
    if (event_ != nullptr) (void)cudaEventDestroy(event_);  // nobody could act on an error
  }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Page-locked host memory behind the standard's interface. Where none can be had it gives ordinary
// memory: copies from and to it are slower but right.
// Threads: thread-safe.
class PinnedMemory : public std::pmr::memory_resource {
 public:
  explicit PinnedMemory(int ordinal) : ordinal_(ordinal) {}

 private:
  void* do_allocate(size_t bytes, size_t alignment) override;
  void do_deallocate(void* memory, size_t bytes, size_t alignment) override;
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return this == &other;
  }

  const int ordinal_;
  Mutex mu_;
  std::set<void*> pinned_ ABSL_GUARDED_BY(mu_);
};

// The kernels' table of a model (cuda_kernels.h), uploaded; waits for it.
absl::StatusOr<DeviceBuffer<TensorRow>> MakeTensorTable(const Layout& layout, cudaStream_t stream);

}  // namespace signvote::cuda
