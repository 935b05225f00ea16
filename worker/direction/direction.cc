#include "worker/direction/direction.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "common/bits.h"
#include "common/check.h"
#include "common/status.h"
#include "worker/direction/checks.h"

namespace signvote {
namespace {

// 1/(1 − decay^steps); 1 where nothing decays.
float Correction(double decay, uint64_t steps) {
  return static_cast<float>(1.0 / (1.0 - std::pow(decay, static_cast<double>(steps))));
}

}  // namespace

DirectionCoefficients CoefficientsOf(const DirectionConfig& config) {
  const float beta = static_cast<float>(config.beta);
  switch (config.kind) {
    case DirectionKind::kSignSgd:
      break;
    case DirectionKind::kSignum:
    case DirectionKind::kStoSign:
    case DirectionKind::kMomentumSgd:
      return {.a = beta, .c = beta};
    case DirectionKind::kNesterovSignum:
    case DirectionKind::kMuon:
      return {.a = static_cast<float>(config.beta * config.beta), .c = beta};
    case DirectionKind::kLion:
      return {.a = beta, .c = static_cast<float>(config.beta2)};
    case DirectionKind::kAdam:
      return {.a = 0.0f, .c = beta};
  }
  return {};
}

Formation FormationOf(const DirectionConfig& config, uint64_t steps) {
  Formation f;
  f.envelope = config.envelope;
  if (config.envelope == Envelope::kCoordinate)
    f.envelope_decay = static_cast<float>(config.envelope_decay);
  f.bf16 = config.state_dtype == StateDtype::kBf16;
  if (config.kind == DirectionKind::kMomentumSgd) f.update = Formation::Update::kSum;
  if (config.kind != DirectionKind::kAdam) return f;
  f.update = Formation::Update::kAdam;
  f.c2 = static_cast<float>(config.beta2);
  f.mean_correction = Correction(config.beta, steps);
  f.square_correction = Correction(config.beta2, steps);
  return f;
}

StateSlot SlotOf(const StatePlane& plane) {
  switch (plane.kind) {
    case StatePlane::Kind::kSquares:
      return kSquaresSlot;
    case StatePlane::Kind::kEnvelope:
      return kEnvelopeSlot;
    case StatePlane::Kind::kMomentum:
    case StatePlane::Kind::kSteps:
    case StatePlane::Kind::kResidual:
    case StatePlane::Kind::kStepsize:
      break;
  }
  return kMomentumSlot;
}

bool LengthMatters(const DirectionConfig& config) {
  return config.kind != DirectionKind::kSignSgd || config.error_feedback ||
         config.envelope == Envelope::kCoordinate || config.envelope == Envelope::kOne;
}

void ChunkScalars::AddSegment(const PackScalars& segment, const TensorSpec& tensor) {
  g_l1 += segment.g_l1;
  g_l2_squared += segment.g_l2_squared;
  probe_l1 += segment.probe_l1;
  prev_inner += static_cast<double>(tensor.step_scale) * segment.prev_inner;
  nonfinite += segment.nonfinite;
}

void ChunkScalars::AddChunk(const ChunkScalars& chunk) {
  g_l1 += chunk.g_l1;
  g_l2_squared += chunk.g_l2_squared;
  probe_l1 += chunk.probe_l1;
  prev_inner += chunk.prev_inner;
  nonfinite += chunk.nonfinite;
}

Direction::Direction(const Layout* layout, ChunkPlan plan, DirectionConfig config)
    : layout_(layout),
      plan_(plan),
      config_(config),
      coefficients_(CoefficientsOf(config)),
      planes_(PlanesOf(config, StatePlane::Holder::kPacker)) {
  SIGNVOTE_CHECK(plan_.coordinates() == layout_->coordinates());
  for (const StatePlane& plane : planes_) {
    // Steps are a number of their own.
    state_.emplace_back(plane.single ? 0 : layout_->coordinates() * plane.element_bytes);
  }
  Begin();
}

void Direction::Begin() {
  begun_ = true;
  if (config_.envelope == Envelope::kTensor) envelopes_.assign(layout_->tensors().size(), {});
}

void* Direction::StateAt(size_t plane, uint64_t first) {
  return state_[plane].data() + first * planes_[plane].element_bytes;
}

PackSegment Direction::SegmentAt(const TensorRange& range, const ChunkInput& input) {
  const auto at = [&](ConstTensorPointers values) -> const float* {
    if (values.empty() || values[range.tensor] == nullptr) return nullptr;
    return values[range.tensor] + range.offset;
  };
  PackSegment segment{
      .g = at(input.g),
      .u = at(input.u),
      .h = at(input.h),
      .first = range.first,
      .count = range.count,
      .sparse = layout_->tensors()[range.tensor].treatment == TensorTreatment::kSparse};
  for (size_t plane = 0; plane < planes_.size(); ++plane) {
    if (!planes_[plane].single) segment.state[SlotOf(planes_[plane])] = StateAt(plane, range.first);
  }
  return segment;
}

float Direction::EnvelopeOf(size_t tensor, const PackContext& context, const ChunkInput& input) {
  std::optional<float>& known = envelopes_[tensor];
  if (!known.has_value()) {
    const TensorSpec& t = layout_->tensors()[tensor];
    known = Largest(
        context,
        SegmentAt({.tensor = tensor, .offset = 0, .first = t.first, .count = t.count}, input));
  }
  return *known;
}

ChunkScalars Direction::PackChunk(ChunkIndex k, const ChunkInput& input, uint8_t* ballot) {
  const size_t tensors = layout_->tensors().size();
  SIGNVOTE_CHECK(input.g.size() == tensors);
  SIGNVOTE_CHECK(input.u.empty() || input.u.size() == tensors);
  SIGNVOTE_CHECK(input.h.empty() || input.h.size() == tensors);
  if (begun_ && config_.kind == DirectionKind::kAdam) ++steps_;
  begun_ = false;
  const PackContext context{.coefficients = coefficients_,
                            .formation = FormationOf(config_, steps_),
                            .clip = input.clip,
                            .seed = input.seed,
                            .round = input.round,
                            .share = input.share};
  // Padding: the kernel keeps the bits that belong to no coordinate.
  ballot[plan_.Bytes(k) - 1] = 0;

  ChunkScalars total;
  ForEachTensorRange(*layout_, plan_.First(k), plan_.Count(k), [&](const TensorRange& range) {
    PackSegment segment = SegmentAt(range, input);
    SIGNVOTE_CHECK(input.u.empty() || segment.u != nullptr);
    segment.prev_bits = input.prev_verdict;
    segment.bits = ballot;
    segment.bits_first = plan_.First(k);
    if (config_.envelope == Envelope::kTensor)
      segment.envelope = EnvelopeOf(range.tensor, context, input);
    PackScalars scalars = Pack(context, segment);
    // A probe gradient of zero: |g − 0| is |g|, in the same order.
    if (!input.h.empty() && segment.h == nullptr) scalars.probe_l1 = scalars.g_l1;
    total.AddSegment(scalars, layout_->tensors()[range.tensor]);
  });
  return total;
}

void Direction::Step(const StepInput& input) {
  if (config_.kind == DirectionKind::kAdam) ++steps_;
  const PackContext context{
      .coefficients = coefficients_, .formation = FormationOf(config_, steps_), .clip = input.clip};
  const std::span<const TensorSpec> tensors = layout_->tensors();
  for (size_t k = 0; k < tensors.size(); ++k) {
    if (input.g[k] == nullptr) continue;
    const PackSegment segment =
        SegmentAt({.tensor = k, .offset = 0, .first = tensors[k].first, .count = tensors[k].count},
                  {.g = input.g});
    signvote::Step(context, segment, input.eta * tensors[k].step_scale, input.y[k]);
  }
}

ChunkScalars Direction::Sums(ConstTensorPointers g, const uint8_t* prev_verdict) const {
  std::vector<uint8_t> bits(plan_.Bytes(ChunkIndex(0)));
  ChunkScalars sums;
  for (uint32_t k = 0; k < plan_.chunks(); ++k) {
    const uint64_t first = plan_.First(ChunkIndex(k));
    ChunkScalars of_chunk;
    ForEachTensorRange(*layout_, first, plan_.Count(ChunkIndex(k)), [&](const TensorRange& range) {
      if (g[range.tensor] == nullptr) return;
      const PackScalars segment = Pack({}, {.g = g[range.tensor] + range.offset,
                                            .prev_bits = prev_verdict,
                                            .bits = bits.data(),
                                            .bits_first = first,
                                            .first = range.first,
                                            .count = range.count});
      of_chunk.AddSegment(segment, layout_->tensors()[range.tensor]);
    });
    sums.AddChunk(of_chunk);
  }
  return sums;
}

void Direction::Reset() {
  for (std::vector<std::byte>& plane : state_) std::fill(plane.begin(), plane.end(), std::byte{0});
  steps_ = 0;
  Begin();
}

absl::Status Direction::SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) const {
  SIGNVOTE_RETURN_IF_ERROR(CheckStateRange(*layout_, planes_, plane, first, bytes.size()));
  const std::span<const std::byte> from =
      planes_[plane].single ? std::as_bytes(std::span(&steps_, 1)) : std::span(state_[plane]);
  const auto begin = from.begin() + static_cast<ptrdiff_t>(first * planes_[plane].element_bytes);
  std::copy_n(begin, bytes.size(), bytes.begin());
  return absl::OkStatus();
}

absl::Status Direction::RestoreState(size_t plane, uint64_t first,
                                     std::span<const std::byte> bytes) {
  SIGNVOTE_RETURN_IF_ERROR(CheckStateRange(*layout_, planes_, plane, first, bytes.size()));
  const std::span<std::byte> to = planes_[plane].single
                                      ? std::as_writable_bytes(std::span(&steps_, 1))
                                      : std::span(state_[plane]);
  std::copy(bytes.begin(), bytes.end(),
            to.begin() + static_cast<ptrdiff_t>(first * planes_[plane].element_bytes));
  return absl::OkStatus();
}

}  // namespace signvote
