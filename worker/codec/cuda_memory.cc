#include "worker/codec/cuda_memory.h"

#include <vector>

#include "absl/strings/str_cat.h"

namespace signvote::cuda {

absl::Status ToStatus(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return absl::OkStatus();
  // The runtime keeps it for whoever asks next; LibTorch asks after its launches and would take it
  // for its own.
  (void)cudaGetLastError();
  const std::string text = absl::StrCat("CUDA: ", call, ": ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(text)
                                            : absl::InternalError(text);
}

absl::Status Device::Use() const { return SIGNVOTE_CUDA(cudaSetDevice, ordinal); }

absl::StatusOr<Stream> Stream::Make() {
  Stream stream;
  SIGNVOTE_RETURN_IF_ERROR(
      SIGNVOTE_CUDA(cudaStreamCreateWithFlags, &stream.stream_, cudaStreamNonBlocking));
  return stream;
}

absl::StatusOr<CudaEvent> CudaEvent::Make() {
  CudaEvent event;
  SIGNVOTE_RETURN_IF_ERROR(
      SIGNVOTE_CUDA(cudaEventCreateWithFlags, &event.event_, cudaEventDisableTiming));
  return event;
}

void* PinnedMemory::do_allocate(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  if (cudaSetDevice(ordinal_) == cudaSuccess &&
      cudaHostAlloc(&memory, bytes, cudaHostAllocDefault) == cudaSuccess) {
    MutexLock lock(&mu_);
    pinned_.insert(memory);
    return memory;
  }
  (void)cudaGetLastError();  // as in ToStatus()
  return std::pmr::new_delete_resource()->allocate(bytes, alignment);
}

void PinnedMemory::do_deallocate(void* memory, size_t bytes, size_t alignment) {
  bool pinned;
  {
    MutexLock lock(&mu_);
    pinned = pinned_.erase(memory) > 0;
  }
  if (pinned) {
    (void)cudaFreeHost(memory);  // nobody could act on an error
  } else {
    std::pmr::new_delete_resource()->deallocate(memory, bytes, alignment);
  }
}

absl::StatusOr<DeviceBuffer<TensorRow>> MakeTensorTable(const Layout& layout, cudaStream_t stream) {
  std::vector<TensorRow> rows;
  for (const TensorSpec& t : layout.tensors()) {
    rows.push_back({.first = t.first,
                    .step_scale = t.step_scale,
                    .weight_decay = t.weight_decay,
                    .sparse = t.treatment == TensorTreatment::kSparse ? 1u : 0u,
                    .unused = 0});
  }
  rows.push_back({.first = layout.coordinates(),
                  .step_scale = 0.0f,
                  .weight_decay = 0.0f,
                  .sparse = 0,
                  .unused = 0});
  SIGNVOTE_ASSIGN_OR_RETURN(auto table, DeviceBuffer<TensorRow>::Make(rows.size()));
  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, table.data(), rows.data(), table.bytes(),
                                         cudaMemcpyHostToDevice, stream));
  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaStreamSynchronize, stream));
  return table;
}

}  // namespace signvote::cuda
