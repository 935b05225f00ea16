#include "worker/codec/cuda_replica.h"

#include <algorithm>

#include "common/bits.h"
#include "common/check.h"
#include "common/checksum.h"

namespace signvote::cuda {
namespace {

constexpr uint64_t kDigestPiece = 64 * kReplicaDigestBlock;  // coordinates: 1 MiB

}  // namespace

absl::StatusOr<std::unique_ptr<CudaReplicaMemory>> CudaReplicaMemory::Make(const Device* device,
                                                                           const Layout* layout,
                                                                           std::span<float> x) {
  SIGNVOTE_CHECK(x.size() == layout->coordinates());
  SIGNVOTE_RETURN_IF_ERROR(device->Use());
  auto replica = std::unique_ptr<CudaReplicaMemory>(new CudaReplicaMemory(device, layout, x));
  const cudaStream_t stream = device->stream();
  SIGNVOTE_ASSIGN_OR_RETURN(replica->tensors_, MakeTensorTable(*layout, stream));
  SIGNVOTE_ASSIGN_OR_RETURN(replica->verdict_, DeviceBuffer<uint32_t>::Make(
                                                   (x.size() + kGroupCoordinates - 1) /
                                                   kGroupCoordinates * (kGroupCoordinates / 32)));
  for (int i = 0; i < 2; ++i) {
    SIGNVOTE_ASSIGN_OR_RETURN(
        replica->pieces_[i], PinnedBuffer<float>::Make(std::min<uint64_t>(kDigestPiece, x.size())));
    SIGNVOTE_ASSIGN_OR_RETURN(replica->copied_[i], Event::Make());
  }
  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemsetAsync, replica->verdict_.data(), 0,
                                         replica->verdict_.bytes(), stream));
  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaStreamSynchronize, stream));
  return replica;
}

template <typename Function>
absl::Status CudaReplicaMemory::Guarded(const Function& function) {
  if (poison_.ok()) poison_ = device_->Use();
  if (poison_.ok()) poison_ = function(device_->stream());
  return poison_;
}

absl::Status CudaReplicaMemory::Write(uint64_t first, std::span<const float> values) {
  SIGNVOTE_CHECK(first <= x_.size() && values.size() <= x_.size() - first);
  if (values.empty()) return poison_;
  return Guarded([&](cudaStream_t stream) {
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, x_.data() + first, values.data(),
                                           values.size_bytes(), cudaMemcpyHostToDevice, stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::Status CudaReplicaMemory::Read(uint64_t first, std::span<float> values) {
  SIGNVOTE_CHECK(first <= x_.size() && values.size() <= x_.size() - first);
  if (values.empty()) return poison_;
  return Guarded([&](cudaStream_t stream) {
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, values.data(), x_.data() + first,
                                           values.size_bytes(), cudaMemcpyDeviceToHost, stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::Status CudaReplicaMemory::ApplyStep(const Layout& layout, float gamma, uint64_t first,
                                          uint64_t count, const uint8_t* verdict) {
  SIGNVOTE_CHECK(&layout == layout_ || layout.digest() == layout_->digest());
  SIGNVOTE_CHECK(first <= x_.size() && count <= x_.size() - first);
  if (count == 0) return poison_;
  return Guarded([&](cudaStream_t stream) {
    // Whole bytes: bits of a neighbour that come along are of the same verdict, and the neighbour's
    // next apply brings its own.
    const uint64_t begin = first / 8;
    const uint64_t end = BytesForBits(first + count);
    SIGNVOTE_RETURN_IF_ERROR(
        SIGNVOTE_CUDA(cudaMemcpyAsync, reinterpret_cast<uint8_t*>(verdict_.data()) + begin,
                      verdict + begin, end - begin, cudaMemcpyHostToDevice, stream));
    SIGNVOTE_RETURN_IF_ERROR(
        SIGNVOTE_CUDA(LaunchApply,
                      ApplyArguments{.x = x_.data(),
                                     .x0 = nullptr,
                                     .verdict = verdict_.data(),
                                     .tensors = tensors_.data(),
                                     .tensor_count = static_cast<uint32_t>(tensors_.size() - 1),
                                     .first = first,
                                     .count = count,
                                     .gamma = gamma,
                                     .rho = 1.0f},
                      stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::StatusOr<uint64_t> CudaReplicaMemory::Digest() {
  uint64_t digest = 0;
  const uint64_t pieces = (x_.size() + kDigestPiece - 1) / kDigestPiece;
  const absl::Status done = Guarded([&](cudaStream_t stream) {
    // Piece k travels while piece k − 1 is hashed.
    for (uint64_t k = 0; k <= pieces; ++k) {
      if (k < pieces) {
        const uint64_t first = k * kDigestPiece;
        const uint64_t count = std::min(kDigestPiece, x_.size() - first);
        SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, pieces_[k % 2].data(),
                                               x_.data() + first, count * sizeof(float),
                                               cudaMemcpyDeviceToHost, stream));
        SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaEventRecord, copied_[k % 2].get(), stream));
      }
      if (k > 0) {
        const uint64_t first = (k - 1) * kDigestPiece;
        SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaEventSynchronize, copied_[(k - 1) % 2].get()));
        digest += ReplicaDigest(pieces_[(k - 1) % 2].data(), first,
                                std::min(kDigestPiece, x_.size() - first));
      }
    }
    return absl::OkStatus();
  });
  if (!done.ok()) return done;
  return digest;
}

}  // namespace signvote::cuda
