#include "worker/codec/cuda_replica.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/bits.h"
#include "common/checksum.h"
#include "common/payload_plan.h"

namespace signvote::cuda {
namespace {

constexpr uint64_t kDigestPiece = 64 * kReplicaDigestBlock;  // coordinates: 1 MiB
// What is looked at on the host travels in such pieces, in coordinates: large enough that the waits do
// not count, small beside a replica.
constexpr uint64_t kHostPiece = 256 * kReplicaDigestBlock;

}  // namespace

absl::StatusOr<std::unique_ptr<CudaReplicaMemory>> CudaReplicaMemory::Make(const Device* device,
                                                                           const Layout* layout,
                                                                           TensorPointers x) {
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaPointers(*layout, x.size()));
  SIGNVOTE_RETURN_IF_ERROR(device->Use());
  auto replica = std::unique_ptr<CudaReplicaMemory>(new CudaReplicaMemory(device, layout, x));
  const cudaStream_t stream = device->stream();
  const uint64_t d = layout->coordinates();
  SIGNVOTE_ASSIGN_OR_RETURN(replica->tensors_, MakeTensorTable(*layout, stream));
  SIGNVOTE_ASSIGN_OR_RETURN(replica->scales_, DeviceBuffer<float>::Make(x.size()));
  SIGNVOTE_ASSIGN_OR_RETURN(replica->x_table_, DeviceBuffer<float*>::Make(x.size()));
  SIGNVOTE_ASSIGN_OR_RETURN(replica->verdict_, DeviceBuffer<uint32_t>::Make(
                                                   (d + kGroupCoordinates - 1) / kGroupCoordinates *
                                                   (kGroupCoordinates / 32)));
  for (int i = 0; i < 2; ++i) {
    SIGNVOTE_ASSIGN_OR_RETURN(replica->pieces_[i],
                              PinnedBuffer<float>::Make(std::min<uint64_t>(kDigestPiece, d)));
    SIGNVOTE_ASSIGN_OR_RETURN(replica->copied_[i], CudaEvent::Make());
  }
  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, replica->x_table_.data(),
                                         replica->x_.data(), replica->x_table_.bytes(),
                                         cudaMemcpyHostToDevice, stream));
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

absl::Status CudaReplicaMemory::CheckLayout(const Layout& layout) const {
  if (&layout == layout_ || layout.digest() == layout_->digest()) return absl::OkStatus();
  return absl::InvalidArgumentError("the layout is not the one that this replica was made for");
}

absl::Status CudaReplicaMemory::QueueRead(uint64_t first, uint64_t count, float* to,
                                          cudaStream_t stream) const {
  absl::Status status;
  ForEachTensorRange(*layout_, first, count, [&](const TensorRange& range) {
    if (!status.ok()) return;
    status =
        SIGNVOTE_CUDA(cudaMemcpyAsync, to + (range.first - first), x_[range.tensor] + range.offset,
                      range.count * sizeof(float), cudaMemcpyDeviceToHost, stream);
  });
  return status;
}

absl::Status CudaReplicaMemory::Write(uint64_t first, std::span<const float> values) {
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(coordinates(), first, values.size()));
  if (values.empty()) return poison_;
  return Guarded([&](cudaStream_t stream) {
    absl::Status status;
    ForEachTensorRange(*layout_, first, values.size(), [&](const TensorRange& range) {
      if (!status.ok()) return;
      status = SIGNVOTE_CUDA(cudaMemcpyAsync, x_[range.tensor] + range.offset,
                             values.data() + (range.first - first), range.count * sizeof(float),
                             cudaMemcpyHostToDevice, stream);
    });
    SIGNVOTE_RETURN_IF_ERROR(status);
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::Status CudaReplicaMemory::Read(uint64_t first, std::span<float> values) {
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(coordinates(), first, values.size()));
  if (values.empty()) return poison_;
  return Guarded([&](cudaStream_t stream) {
    SIGNVOTE_RETURN_IF_ERROR(QueueRead(first, values.size(), values.data(), stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::Status CudaReplicaMemory::Apply(const Layout& layout, const StepArguments& step,
                                      uint64_t first, uint64_t count, const uint8_t* verdict) {
  SIGNVOTE_RETURN_IF_ERROR(CheckLayout(layout));
  SIGNVOTE_RETURN_IF_ERROR(CheckApply(*this, layout, step, first, count));
  if (count == 0) return poison_;
  return Guarded([&](cudaStream_t stream) {
    // Whole bytes: bits of a neighbour that come along are of the same verdict, and the neighbour's
    // next apply brings its own.
    const uint64_t begin = first / 8;
    const uint64_t end = BytesForBits(first + count);
    SIGNVOTE_RETURN_IF_ERROR(
        SIGNVOTE_CUDA(cudaMemcpyAsync, reinterpret_cast<uint8_t*>(verdict_.data()) + begin,
                      verdict + begin, end - begin, cudaMemcpyHostToDevice, stream));
    SIGNVOTE_ASSIGN_OR_RETURN(const ApplyArguments arguments,
                              QueueStep(step, first, count, stream));
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(LaunchApply, arguments, stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::StatusOr<ApplyArguments> CudaReplicaMemory::QueueStep(const StepArguments& step,
                                                            uint64_t first, uint64_t count,
                                                            cudaStream_t stream) {
  if (!step.scales.empty()) {
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, scales_.data(), step.scales.data(),
                                           scales_.bytes(), cudaMemcpyHostToDevice, stream));
  }
  return ApplyArguments{.x = x_table_.data(),
                        .x0 = x0_.data(),
                        .verdict = verdict_.data(),
                        .tensors = tensors_.data(),
                        .tensor_count = static_cast<uint32_t>(tensors_.size() - 1),
                        .first = first,
                        .count = count,
                        .gamma = step.gamma,
                        .rho = step.rho,
                        .decay_step = step.decay_step.value_or(step.gamma),
                        .scales = step.scales.empty() ? nullptr : scales_.data()};
}

absl::Status CudaReplicaMemory::ApplyCounts(const Layout& layout, const StepArguments& step,
                                            uint64_t first, uint64_t count,
                                            const CountsView& counts) {
  SIGNVOTE_RETURN_IF_ERROR(CheckLayout(layout));
  SIGNVOTE_RETURN_IF_ERROR(CheckApplyCounts(*this, layout, step, first, count, counts));
  if (count == 0) return poison_;
  return Guarded([&](cudaStream_t stream) -> absl::Status {
    const uint32_t planes = CountPlanes(counts.ballots);
    // Whole bytes of each plane, one plane behind the other in whole words.
    const uint64_t begin = (first - counts.first) / 8;
    const uint64_t bytes = BytesForBits(first + count - counts.first) - begin;
    const uint64_t words = (bytes + sizeof(uint32_t) - 1) / sizeof(uint32_t);
    if (planes_.size() < planes * words) {
      SIGNVOTE_ASSIGN_OR_RETURN(planes_, DeviceBuffer<uint32_t>::Make(planes * words));
    }
    for (uint32_t p = 0; p < planes; ++p) {
      SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, planes_.data() + p * words,
                                             counts.planes + p * counts.plane_bytes + begin, bytes,
                                             cudaMemcpyHostToDevice, stream));
    }
    SIGNVOTE_ASSIGN_OR_RETURN(const ApplyArguments arguments,
                              QueueStep(step, first, count, stream));
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(LaunchApplyCounts,
                                           CountsArguments{.step = arguments,
                                                           .planes = planes_.data(),
                                                           .plane_words = words,
                                                           .plane_count = planes,
                                                           .ballots = counts.ballots,
                                                           .first = counts.first + begin * 8},
                                           stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::Status CudaReplicaMemory::ApplyDense(const Layout& layout, const StepArguments& step,
                                           uint64_t first, uint64_t count, const DenseView& dense) {
  SIGNVOTE_RETURN_IF_ERROR(CheckLayout(layout));
  SIGNVOTE_RETURN_IF_ERROR(CheckApplyDense(*this, layout, step, first, count, dense));
  if (count == 0) return poison_;
  return Guarded([&](cudaStream_t stream) -> absl::Status {
    const uint64_t value_bytes = dense.bf16 ? sizeof(uint16_t) : sizeof(float);
    const uint64_t bytes = count * value_bytes;
    const uint64_t words = (bytes + sizeof(uint32_t) - 1) / sizeof(uint32_t);
    if (planes_.size() < words) {
      SIGNVOTE_ASSIGN_OR_RETURN(planes_, DeviceBuffer<uint32_t>::Make(words));
    }
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, planes_.data(),
                                           dense.values + (first - dense.first) * value_bytes,
                                           bytes, cudaMemcpyHostToDevice, stream));
    SIGNVOTE_ASSIGN_OR_RETURN(const ApplyArguments arguments,
                              QueueStep(step, first, count, stream));
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(
        LaunchApplyDense,
        DenseArguments{
            .step = arguments, .values = planes_.data(), .bf16 = dense.bf16, .first = first},
        stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::Status CudaReplicaMemory::KeepX0() {
  return Guarded([&](cudaStream_t stream) -> absl::Status {
    SIGNVOTE_ASSIGN_OR_RETURN(auto x0, DeviceBuffer<float>::Make(coordinates()));
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemsetAsync, x0.data(), 0, x0.bytes(), stream));
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaStreamSynchronize, stream));
    x0_ = std::move(x0);
    return absl::OkStatus();
  });
}

absl::Status CudaReplicaMemory::WriteX0(uint64_t first, std::span<const float> values) {
  SIGNVOTE_RETURN_IF_ERROR(RequireX0(*this));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(coordinates(), first, values.size()));
  if (values.empty()) return poison_;
  return Guarded([&](cudaStream_t stream) {
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, x0_.data() + first, values.data(),
                                           values.size_bytes(), cudaMemcpyHostToDevice, stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::Status CudaReplicaMemory::ReadX0(uint64_t first, std::span<float> values) {
  SIGNVOTE_RETURN_IF_ERROR(RequireX0(*this));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(coordinates(), first, values.size()));
  if (values.empty()) return poison_;
  return Guarded([&](cudaStream_t stream) {
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, values.data(), x0_.data() + first,
                                           values.size_bytes(), cudaMemcpyDeviceToHost, stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::Status CudaReplicaMemory::Rewind(uint64_t first, uint64_t count) {
  SIGNVOTE_RETURN_IF_ERROR(RequireX0(*this));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(coordinates(), first, count));
  if (count == 0) return poison_;
  return Guarded([&](cudaStream_t stream) {
    absl::Status status;
    ForEachTensorRange(*layout_, first, count, [&](const TensorRange& range) {
      if (!status.ok()) return;
      status =
          SIGNVOTE_CUDA(cudaMemcpyAsync, x_[range.tensor] + range.offset, x0_.data() + range.first,
                        range.count * sizeof(float), cudaMemcpyDeviceToDevice, stream);
    });
    SIGNVOTE_RETURN_IF_ERROR(status);
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::StatusOr<X0Sums> CudaReplicaMemory::SumsAboutX0(const Layout& layout, ConstTensorPointers g) {
  SIGNVOTE_RETURN_IF_ERROR(CheckLayout(layout));
  SIGNVOTE_RETURN_IF_ERROR(RequireX0(*this));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaPointers(layout, g.size()));
  X0Sums sums;
  const uint64_t d = coordinates();
  const uint64_t most = std::min(kHostPiece, d);
  std::vector<float> host_g(most), host_x(most), host_x0(most);
  const absl::Status done = Guarded([&](cudaStream_t stream) {
    for (uint64_t first = 0; first < d; first += kHostPiece) {
      const uint64_t count = std::min(kHostPiece, d - first);
      absl::Status status = QueueRead(first, count, host_x.data(), stream);
      if (status.ok()) {
        status = SIGNVOTE_CUDA(cudaMemcpyAsync, host_x0.data(), x0_.data() + first,
                               count * sizeof(float), cudaMemcpyDeviceToHost, stream);
      }
      ForEachTensorRange(*layout_, first, count, [&](const TensorRange& range) {
        if (!status.ok()) return;
        float* const to = host_g.data() + (range.first - first);
        if (g[range.tensor] == nullptr) {
          // As on the CPU no gradient adds nothing, also where x − x0 is not finite.
          std::fill_n(to, range.count, std::numeric_limits<float>::quiet_NaN());
        } else {
          status = SIGNVOTE_CUDA(cudaMemcpyAsync, to, g[range.tensor] + range.offset,
                                 range.count * sizeof(float), cudaMemcpyDeviceToHost, stream);
        }
      });
      SIGNVOTE_RETURN_IF_ERROR(status);
      SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaStreamSynchronize, stream));
      for (uint64_t at = 0; at < count; at += kReplicaDigestBlock) {
        X0Sums block;
        AddX0Block(host_g.data() + at, host_x.data() + at, host_x0.data() + at,
                   std::min(kReplicaDigestBlock, count - at), &block);
        sums.inner += block.inner;
        sums.distance_squared += block.distance_squared;
      }
    }
    return absl::OkStatus();
  });
  if (!done.ok()) return done;
  return sums;
}

absl::StatusOr<GradientRange> CudaReplicaMemory::RangeOf(const Layout& layout,
                                                         ConstTensorPointers g) {
  SIGNVOTE_RETURN_IF_ERROR(CheckLayout(layout));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaPointers(layout, g.size()));
  RangeBuilder range;
  std::vector<float> piece(std::min(kHostPiece, coordinates()));
  const absl::Status done = Guarded([&](cudaStream_t stream) {
    for (size_t k = 0; k < g.size(); ++k) {
      const uint64_t count = layout.tensors()[k].count;
      if (g[k] == nullptr) {
        range.Add(nullptr, count);
        continue;
      }
      for (uint64_t first = 0; first < count; first += piece.size()) {
        const uint64_t part = std::min<uint64_t>(piece.size(), count - first);
        SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, piece.data(), g[k] + first,
                                               part * sizeof(float), cudaMemcpyDeviceToHost,
                                               stream));
        SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaStreamSynchronize, stream));
        range.Add(piece.data(), part);
      }
    }
    return absl::OkStatus();
  });
  if (!done.ok()) return done;
  return range.range();
}

absl::StatusOr<uint64_t> CudaReplicaMemory::Digest() {
  uint64_t digest = 0;
  const uint64_t d = coordinates();
  const uint64_t pieces = (d + kDigestPiece - 1) / kDigestPiece;
  const absl::Status done = Guarded([&](cudaStream_t stream) {
    // Piece k travels while piece k − 1 is hashed.
    for (uint64_t k = 0; k <= pieces; ++k) {
      if (k < pieces) {
        const uint64_t first = k * kDigestPiece;
        const uint64_t count = std::min(kDigestPiece, d - first);
        SIGNVOTE_RETURN_IF_ERROR(QueueRead(first, count, pieces_[k % 2].data(), stream));
        SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaEventRecord, copied_[k % 2].get(), stream));
      }
      if (k > 0) {
        const uint64_t first = (k - 1) * kDigestPiece;
        SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaEventSynchronize, copied_[(k - 1) % 2].get()));
        digest +=
            ReplicaDigest(pieces_[(k - 1) % 2].data(), first, std::min(kDigestPiece, d - first));
      }
    }
    return absl::OkStatus();
  });
  if (!done.ok()) return done;
  return digest;
}

}  // namespace signvote::cuda
