#include "worker/direction/direction.h"

#include <algorithm>
#include <cmath>

#include "common/bits.h"
#include "common/check.h"

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
  if (config_.kind != DirectionKind::kSignSgd) m_.resize(layout_->coordinates());
}

ChunkScalars Direction::PackChunk(ChunkIndex k, const ChunkInput& input, uint8_t* ballot) {
  const uint64_t begin = plan_.First(k);
  const uint64_t end = begin + plan_.Count(k);
  const PackContext context{.coefficients = coefficients_,
                            .seed = input.seed,
                            .round = input.round,
                            .share = input.share};
  ballot[plan_.Bytes(k) - 1] =
      0;  // padding: the kernel keeps the bits that belong to no coordinate

  ChunkScalars total;
  const auto tensors = layout_->tensors();
  auto tensor = std::partition_point(tensors.begin(), tensors.end(), [begin](const TensorSpec& t) {
    return t.first + t.count <= begin;
  });
  for (; tensor != tensors.end() && tensor->first < end; ++tensor) {
    const uint64_t first = std::max(begin, tensor->first);
    const uint64_t count = std::min(end, tensor->first + tensor->count) - first;
    const PackScalars scalars = Pack(context, {.g = input.g + first,
                                               .m = m_.empty() ? nullptr : m_.data() + first,
                                               .h = input.h == nullptr ? nullptr : input.h + first,
                                               .prev_bits = input.prev_verdict,
                                               .prev_first = 0,
                                               .bits = ballot,
                                               .bits_first = begin,
                                               .first = first,
                                               .count = count});
    total.AddSegment(scalars, *tensor);
  }
  return total;
}

void Direction::Reset() { std::fill(m_.begin(), m_.end(), 0.0f); }

}  // namespace signvote
