#include "worker/direction/direction.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "common/bits.h"
#include "common/check.h"
#include "common/status.h"
#include "worker/direction/checks.h"

namespace signvote {
DirectionCoefficients CoefficientsOf(const DirectionConfig& config) {
  const float beta = static_cast<float>(config.beta);
  switch (config.kind) {
    case DirectionKind::kSignSgd:
      break;
    case DirectionKind::kSignum:
      return {.a = beta, .c = beta};
    case DirectionKind::kNesterovSignum:
      return {.a = static_cast<float>(config.beta * config.beta), .c = beta};
    case DirectionKind::kLion:
      return {.a = beta, .c = static_cast<float>(config.beta2)};
  }
  return {};
}

void ChunkScalars::AddSegment(const PackScalars& segment, const TensorSpec& tensor) {
  g_l1 += segment.g_l1;
  g_l2_squared += segment.g_l2_squared;
  probe_l1 += segment.probe_l1;
  prev_inner += static_cast<double>(tensor.step_scale) * segment.prev_inner;
  nonfinite += segment.nonfinite;
}

Direction::Direction(const Layout* layout, ChunkPlan plan, DirectionConfig config)
    : layout_(layout), plan_(plan), config_(config), coefficients_(CoefficientsOf(config)) {
  SIGNVOTE_CHECK(plan_.coordinates() == layout_->coordinates());
  SIGNVOTE_CHECK(planes().size() <= kStatePlanesMax);
  for (const StatePlane& plane : planes()) {
    SIGNVOTE_CHECK(plane.element_bytes == sizeof(float));
    state_.emplace_back(layout_->coordinates(), 0.0f);
  }
}

ChunkScalars Direction::PackChunk(ChunkIndex k, const ChunkInput& input, uint8_t* ballot) {
  const size_t tensors = layout_->tensors().size();
  SIGNVOTE_CHECK(input.g.size() == tensors);
  SIGNVOTE_CHECK(input.u.empty() || input.u.size() == tensors);
  SIGNVOTE_CHECK(input.h.empty() || input.h.size() == tensors);
  const PackContext context{.coefficients = coefficients_,
                            .seed = input.seed,
                            .round = input.round,
                            .share = input.share,
                            .stepsize = input.stepsize};
  // Padding: the kernel keeps the bits that belong to no coordinate.
  ballot[plan_.Bytes(k) - 1] = 0;

  ChunkScalars total;
  ForEachTensorRange(*layout_, plan_.First(k), plan_.Count(k), [&](const TensorRange& range) {
    const auto at = [&](ConstTensorPointers values) -> const float* {
      if (values.empty() || values[range.tensor] == nullptr) return nullptr;
      return values[range.tensor] + range.offset;
    };
    PackSegment segment{.g = at(input.g),
                        .u = at(input.u),
                        .h = at(input.h),
                        .prev_bits = input.prev_verdict,
                        .prev_first = 0,
                        .bits = ballot,
                        .bits_first = plan_.First(k),
                        .first = range.first,
                        .count = range.count};
    SIGNVOTE_CHECK(input.u.empty() || segment.u != nullptr);
    for (size_t plane = 0; plane < state_.size(); ++plane)
      segment.state[plane] = state_[plane].data() + range.first;
    PackScalars scalars = Pack(context, segment);
    // A probe gradient of zero: |g − 0| is |g|, in the same order.
    if (!input.h.empty() && segment.h == nullptr) scalars.probe_l1 = scalars.g_l1;
    total.AddSegment(scalars, layout_->tensors()[range.tensor]);
  });
  return total;
}

void Direction::Reset() {
  for (std::vector<float>& plane : state_) std::fill(plane.begin(), plane.end(), 0.0f);
}

absl::Status Direction::SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) const {
  SIGNVOTE_RETURN_IF_ERROR(CheckStateRange(*layout_, state_.size(), plane, first, bytes.size()));
  const auto from = std::as_bytes(std::span(state_[plane]).subspan(first)).first(bytes.size());
  std::copy(from.begin(), from.end(), bytes.begin());
  return absl::OkStatus();
}

absl::Status Direction::RestoreState(size_t plane, uint64_t first,
                                     std::span<const std::byte> bytes) {
  SIGNVOTE_RETURN_IF_ERROR(CheckStateRange(*layout_, state_.size(), plane, first, bytes.size()));
  const auto to = std::as_writable_bytes(std::span(state_[plane]).subspan(first));
  std::copy(bytes.begin(), bytes.end(), to.begin());
  return absl::OkStatus();
}

}  // namespace signvote
