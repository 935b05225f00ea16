#include "worker/direction/cuda_packer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "worker/direction/checks.h"

namespace signvote::cuda {
namespace {

absl::Status NoVerdict() {
  return absl::FailedPreconditionError(
      "there is no previous verdict on this device: no replica was made here");
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaPacker>> CudaPacker::Make(const Device* device,
                                                             const Layout* layout, ChunkPlan plan,
                                                             const DirectionConfig& config,
                                                             const uint32_t* const* verdict) {
  SIGNVOTE_RETURN_IF_ERROR(CheckPlan(*layout, plan));
  SIGNVOTE_RETURN_IF_ERROR(device->Use());
  auto packer = std::unique_ptr<CudaPacker>(new CudaPacker(device, layout, plan, config, verdict));
  const cudaStream_t stream = device->stream();
  SIGNVOTE_ASSIGN_OR_RETURN(packer->tensors_, MakeTensorTable(*layout, stream));
  const uint64_t d = layout->coordinates();
  static_assert(kStatePlanes == kStateSlots);
  for (const StatePlane& plane : packer->planes_) {
    packer->state_.emplace_back();
    if (plane.single) continue;  // steps are a number of the host
    SIGNVOTE_ASSIGN_OR_RETURN(packer->state_.back(),
                              DeviceBuffer<std::byte>::Make(d * plane.element_bytes));
  }
  if (config.envelope == Envelope::kTensor) {
    SIGNVOTE_ASSIGN_OR_RETURN(packer->envelopes_,
                              DeviceBuffer<float>::Make(layout->tensors().size()));
    packer->measured_.assign(layout->tensors().size(), false);
  }
  SIGNVOTE_ASSIGN_OR_RETURN(packer->bits_, DeviceBuffer<uint16_t>::Make((d + 15) / 16));

  const auto tensors = layout->tensors();
  uint64_t pieces = 0, inputs = 0;
  for (uint32_t k = 0; k < plan.chunks(); ++k) {
    Chunk chunk;
    const uint64_t first = plan.First(ChunkIndex(k));
    const uint64_t count = plan.Count(ChunkIndex(k));
    const auto begin =
        std::partition_point(tensors.begin(), tensors.end(),
                             [&](const TensorSpec& t) { return t.first + t.count <= first; });
    const auto end = std::partition_point(
        begin, tensors.end(), [&](const TensorSpec& t) { return t.first < first + count; });
    chunk.first_tensor = static_cast<uint32_t>(begin - tensors.begin());
    chunk.tensors = static_cast<uint32_t>(end - begin);
    chunk.first_piece = pieces;
    chunk.pieces = PieceSlots(count, chunk.tensors);
    pieces += chunk.pieces;
    chunk.first_input = inputs;
    inputs += chunk.tensors;
    SIGNVOTE_ASSIGN_OR_RETURN(chunk.packed, CudaEvent::Make());
    SIGNVOTE_ASSIGN_OR_RETURN(chunk.copied, CudaEvent::Make());
    packer->chunks_.push_back(std::move(chunk));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(packer->pieces_, DeviceBuffer<PackScalars>::Make(pieces));
  SIGNVOTE_ASSIGN_OR_RETURN(packer->host_pieces_, PinnedBuffer<PackScalars>::Make(pieces));
  SIGNVOTE_ASSIGN_OR_RETURN(packer->inputs_, DeviceBuffer<TensorInputs>::Make(inputs));
  SIGNVOTE_ASSIGN_OR_RETURN(packer->host_inputs_, PinnedBuffer<TensorInputs>::Make(inputs));
  std::fill_n(packer->host_inputs_.data(), inputs, TensorInputs{});
  SIGNVOTE_ASSIGN_OR_RETURN(packer->copies_, Stream::Make());
  // Queued once everything is allocated: nothing that fails afterwards may free what is being
  // written.
  SIGNVOTE_RETURN_IF_ERROR(
      SIGNVOTE_CUDA(cudaMemsetAsync, packer->pieces_.data(), 0, packer->pieces_.bytes(), stream));
  SIGNVOTE_RETURN_IF_ERROR(
      SIGNVOTE_CUDA(cudaMemsetAsync, packer->inputs_.data(), 0, packer->inputs_.bytes(), stream));
  for (DeviceBuffer<std::byte>& plane : packer->state_) {
    if (plane.size() == 0) continue;
    SIGNVOTE_RETURN_IF_ERROR(
        SIGNVOTE_CUDA(cudaMemsetAsync, plane.data(), 0, plane.bytes(), stream));
  }
  // Start() may come from a thread whose current stream is another.
  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaStreamSynchronize, stream));
  return packer;
}

CudaPacker::~CudaPacker() {
  if (!device_->Use().ok()) return;
  // What was queued before an error is waited for as well.
  (void)cudaStreamSynchronize(device_->stream());  // nobody could act on an error
  if (copies_.get() != nullptr) (void)cudaStreamSynchronize(copies_.get());
}

absl::Status CudaPacker::Begin() {
  begun_ = true;
  std::fill(measured_.begin(), measured_.end(), false);
  return poison_;
}

absl::Status CudaPacker::Start(ChunkIndex k, const Direction::ChunkInput& input, uint8_t* ballot) {
  SIGNVOTE_RETURN_IF_ERROR(CheckChunkInput(*layout_, plan_, k, input));
  if (chunks_[k.value()].in_flight) {
    return absl::FailedPreconditionError(
        absl::StrCat("chunk ", k.value(), " is in flight; call Finish first"));
  }
  if (input.prev_verdict != nullptr && *verdict_ == nullptr) return NoVerdict();
  if (poison_.ok()) poison_ = Queue(k, input, ballot);
  chunks_[k.value()].in_flight = poison_.ok();
  return poison_;
}

absl::Status CudaPacker::SendInputs(const Chunk& chunk, const Direction::ChunkInput& input,
                                    cudaStream_t stream) {
  TensorInputs* const sent = host_inputs_.data() + chunk.first_input;
  bool changed = false;
  for (uint32_t t = 0; t < chunk.tensors; ++t) {
    const auto of = [&](ConstTensorPointers values) -> const float* {
      return values.empty() ? nullptr : values[chunk.first_tensor + t];
    };
    const TensorInputs now{.g = of(input.g), .u = of(input.u), .h = of(input.h)};
    changed = changed || now.g != sent[t].g || now.u != sent[t].u || now.h != sent[t].h;
    sent[t] = now;
  }
  if (!changed) return absl::OkStatus();
  return SIGNVOTE_CUDA(cudaMemcpyAsync, inputs_.data() + chunk.first_input, sent,
                       chunk.tensors * sizeof(TensorInputs), cudaMemcpyHostToDevice, stream);
}

PackArguments CudaPacker::ArgumentsOf(ChunkIndex k, const Direction::ChunkInput& input) const {
  const Chunk& chunk = chunks_[k.value()];
  const uint64_t first = plan_.First(k);
  PackArguments arguments{.inputs = inputs_.data() + chunk.first_input,
                          .given = !input.u.empty(),
                          .probe = !input.h.empty(),
                          .state = {},
                          .formed = false,
                          .envelopes = nullptr,
                          .prev_verdict = input.prev_verdict == nullptr ? nullptr : *verdict_,
                          .bits = bits_.data() + first / 16,
                          .pieces = pieces_.data() + chunk.first_piece,
                          .tensors = tensors_.data() + chunk.first_tensor,
                          .tensor_count = chunk.tensors,
                          .first = first,
                          .count = plan_.Count(k),
                          .a = coefficients_.a,
                          .c = coefficients_.c,
                          .formation = FormationOf(config_, steps_),
                          .clip = input.clip,
                          .seed = input.seed,
                          .round = input.round.value(),
                          .share = input.share.value()};
  for (size_t plane = 0; plane < planes_.size(); ++plane) {
    if (!planes_[plane].single) arguments.state[SlotOf(planes_[plane])] = state_[plane].data();
  }
  if (envelopes_.size() > 0) arguments.envelopes = envelopes_.data() + chunk.first_tensor;
  const std::span<const TensorSpec> tensors =
      layout_->tensors().subspan(chunk.first_tensor, chunk.tensors);
  const bool sparse = std::any_of(tensors.begin(), tensors.end(), [](const TensorSpec& t) {
    return t.treatment == TensorTreatment::kSparse;
  });
  arguments.formed =
      config_.envelope != Envelope::kNone ||
      (input.u.empty() && (arguments.formation != Formation() || input.clip != 1.0f || sparse));
  return arguments;
}

absl::Status CudaPacker::MeasureEnvelopes(const Chunk& chunk, const PackArguments& of_chunk,
                                          cudaStream_t stream) {
  for (uint32_t t = 0; t < chunk.tensors; ++t) {
    const uint32_t tensor = chunk.first_tensor + t;
    if (measured_[tensor]) continue;
    measured_[tensor] = true;
    LargestArguments arguments{.pack = of_chunk,
                               .first = layout_->tensors()[tensor].first,
                               .count = layout_->tensors()[tensor].count,
                               .largest = envelopes_.data() + tensor};
    arguments.pack.inputs += t;
    arguments.pack.tensors += t;
    SIGNVOTE_RETURN_IF_ERROR(
        SIGNVOTE_CUDA(cudaMemsetAsync, arguments.largest, 0, sizeof(float), stream));
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(LaunchLargest, arguments, stream));
  }
  return absl::OkStatus();
}

absl::Status CudaPacker::Queue(ChunkIndex k, const Direction::ChunkInput& input, uint8_t* ballot) {
  SIGNVOTE_RETURN_IF_ERROR(device_->Use());
  const cudaStream_t stream = device_->stream();
  const Chunk& chunk = chunks_[k.value()];
  if (begun_ && config_.kind == DirectionKind::kAdam) ++steps_;
  begun_ = false;
  SIGNVOTE_RETURN_IF_ERROR(SendInputs(chunk, input, stream));
  const PackArguments arguments = ArgumentsOf(k, input);
  uint16_t* const bits = arguments.bits;
  PackScalars* const pieces = arguments.pieces;
  if (config_.envelope == Envelope::kTensor)
    SIGNVOTE_RETURN_IF_ERROR(MeasureEnvelopes(chunk, arguments, stream));
  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(LaunchPack, arguments, stream));
  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaEventRecord, chunk.packed.get(), stream));
  SIGNVOTE_RETURN_IF_ERROR(
      SIGNVOTE_CUDA(cudaStreamWaitEvent, copies_.get(), chunk.packed.get(), 0));
  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, ballot, bits, plan_.Bytes(k),
                                         cudaMemcpyDeviceToHost, copies_.get()));
  SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(cudaMemcpyAsync, host_pieces_.data() + chunk.first_piece,
                                         pieces, chunk.pieces * sizeof(PackScalars),
                                         cudaMemcpyDeviceToHost, copies_.get()));
  return SIGNVOTE_CUDA(cudaEventRecord, chunk.copied.get(), copies_.get());
}

absl::Status CudaPacker::CheckInFlight(ChunkIndex k) const {
  SIGNVOTE_RETURN_IF_ERROR(CheckChunk(plan_, k));
  if (chunks_[k.value()].in_flight) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("chunk ", k.value(), " is not in flight; call Start first"));
}

absl::StatusOr<bool> CudaPacker::Ready(ChunkIndex k) {
  if (!poison_.ok()) return poison_;
  SIGNVOTE_RETURN_IF_ERROR(CheckInFlight(k));
  const Chunk& chunk = chunks_[k.value()];
  poison_ = device_->Use();
  if (!poison_.ok()) return poison_;
  const cudaError_t state = cudaEventQuery(chunk.copied.get());
  if (state == cudaErrorNotReady) {
    // Not an error, but kept as one for whoever asks next.
    (void)cudaGetLastError();
    return false;
  }
  poison_ = ToStatus(state, "cudaEventQuery");
  if (!poison_.ok()) return poison_;
  return true;
}

absl::StatusOr<ChunkScalars> CudaPacker::Finish(ChunkIndex k) {
  if (!poison_.ok()) return poison_;
  SIGNVOTE_RETURN_IF_ERROR(CheckInFlight(k));
  Chunk& chunk = chunks_[k.value()];
  poison_ = device_->Use();
  if (poison_.ok()) poison_ = SIGNVOTE_CUDA(cudaEventSynchronize, chunk.copied.get());
  if (!poison_.ok()) return poison_;
  chunk.in_flight = false;
  return AddUp(k);
}

ChunkScalars CudaPacker::AddUp(ChunkIndex k) const {
  const Chunk& chunk = chunks_[k.value()];
  const uint64_t begin = plan_.First(k);
  const uint64_t end = begin + plan_.Count(k);
  ChunkScalars total;
  for (uint32_t t = 0; t < chunk.tensors; ++t) {
    const TensorSpec& tensor = layout_->tensors()[chunk.first_tensor + t];
    const uint64_t from = std::max(begin, tensor.first) - begin;
    const uint64_t to = std::min(end, tensor.first + tensor.count) - begin;
    PackScalars segment;
    for (uint64_t tile = from / kTileCoordinates; tile <= (to - 1) / kTileCoordinates; ++tile) {
      segment.Add(host_pieces_.data()[chunk.first_piece + tile + t]);
    }
    total.AddSegment(segment, tensor);
  }
  return total;
}

template <typename Function>
absl::Status CudaPacker::Guarded(const Function& function) {
  if (poison_.ok()) poison_ = device_->Use();
  if (poison_.ok()) poison_ = function(device_->stream());
  return poison_;
}

absl::StatusOr<ChunkScalars> CudaPacker::Sums(ConstTensorPointers g, const uint8_t* prev_verdict) {
  SIGNVOTE_RETURN_IF_ERROR(CheckGradient(*layout_, g));
  if (prev_verdict != nullptr && *verdict_ == nullptr) return NoVerdict();
  const Direction::ChunkInput input{.g = g, .prev_verdict = prev_verdict};
  const auto sum_all = [&](cudaStream_t stream) -> absl::Status {
    for (uint32_t k = 0; k < plan_.chunks(); ++k) {
      SIGNVOTE_RETURN_IF_ERROR(SendInputs(chunks_[k], input, stream));
      // The gradient alone: its bits are overwritten by the ballot's.
      PackArguments arguments = ArgumentsOf(ChunkIndex(k), input);
      std::fill(std::begin(arguments.state), std::end(arguments.state), nullptr);
      arguments.formed = false;
      SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(LaunchPack, arguments, stream));
      SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(
          cudaMemcpyAsync, host_pieces_.data() + chunks_[k].first_piece, arguments.pieces,
          chunks_[k].pieces * sizeof(PackScalars), cudaMemcpyDeviceToHost, stream));
    }
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  };
  SIGNVOTE_RETURN_IF_ERROR(Guarded(sum_all));
  ChunkScalars sums;
  for (uint32_t k = 0; k < plan_.chunks(); ++k) sums.AddChunk(AddUp(ChunkIndex(k)));
  return sums;
}

absl::Status CudaPacker::Step(const Direction::StepInput& input) {
  SIGNVOTE_RETURN_IF_ERROR(CheckStep(*layout_, config_, input));
  if (config_.kind == DirectionKind::kAdam) ++steps_;
  return Guarded([&](cudaStream_t stream) -> absl::Status {
    for (size_t k = 0; k < layout_->tensors().size(); ++k) {
      if (input.g[k] == nullptr) continue;
      const TensorSpec& tensor = layout_->tensors()[k];
      LocalStepArguments arguments{
          .pack = ArgumentsOf(ChunkIndex(0), {.g = input.g, .clip = input.clip}),
          .first = tensor.first,
          .count = tensor.count,
          .g = input.g[k],
          .y = input.y[k],
          .length = input.eta * tensor.step_scale};
      arguments.pack.tensors = tensors_.data() + k;
      SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(LaunchLocalStep, arguments, stream));
    }
    return absl::OkStatus();
  });
}

absl::Status CudaPacker::SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) {
  SIGNVOTE_RETURN_IF_ERROR(CheckStateRange(*layout_, planes_, plane, first, bytes.size()));
  return Guarded([&](cudaStream_t stream) -> absl::Status {
    if (planes_[plane].single) {
      std::copy_n(std::as_bytes(std::span(&steps_, 1)).begin() +
                      static_cast<ptrdiff_t>(first * sizeof(steps_)),
                  bytes.size(), bytes.begin());
      return absl::OkStatus();
    }
    SIGNVOTE_RETURN_IF_ERROR(SIGNVOTE_CUDA(
        cudaMemcpyAsync, bytes.data(), state_[plane].data() + first * planes_[plane].element_bytes,
        bytes.size(), cudaMemcpyDeviceToHost, stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::Status CudaPacker::RestoreState(size_t plane, uint64_t first,
                                      std::span<const std::byte> bytes) {
  SIGNVOTE_RETURN_IF_ERROR(CheckStateRange(*layout_, planes_, plane, first, bytes.size()));
  return Guarded([&](cudaStream_t stream) -> absl::Status {
    if (planes_[plane].single) {
      std::copy(bytes.begin(), bytes.end(),
                std::as_writable_bytes(std::span(&steps_, 1)).begin() +
                    static_cast<ptrdiff_t>(first * sizeof(steps_)));
      return absl::OkStatus();
    }
    SIGNVOTE_RETURN_IF_ERROR(
        SIGNVOTE_CUDA(cudaMemcpyAsync, state_[plane].data() + first * planes_[plane].element_bytes,
                      bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream));
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

absl::Status CudaPacker::Reset() {
  steps_ = 0;
  SIGNVOTE_RETURN_IF_ERROR(Begin());
  return Guarded([&](cudaStream_t stream) {
    for (const DeviceBuffer<std::byte>& plane : state_) {
      if (plane.size() == 0) continue;
      SIGNVOTE_RETURN_IF_ERROR(
          SIGNVOTE_CUDA(cudaMemsetAsync, plane.data(), 0, plane.bytes(), stream));
    }
    return SIGNVOTE_CUDA(cudaStreamSynchronize, stream);
  });
}

}  // namespace signvote::cuda
