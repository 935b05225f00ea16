#include "worker/direction/direction.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr struct {
  DirectionKind kind;
  const char* name;
} kNames[] = {{DirectionKind::kSignSgd, "signsgd"},
              {DirectionKind::kSignum, "signum"},
              {DirectionKind::kNesterovSignum, "nesterov"},
              {DirectionKind::kLion, "lion"}};

absl::Status CheckBeta(const char* which, double beta) {
  // As fp32, which the kernel computes with; false for NaN.
  if (beta >= 0.0 && static_cast<float>(beta) < 1.0f) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %.17g; it must be at least 0 and less than 1 in fp32", which, beta));
}

}  // namespace

absl::StatusOr<DirectionConfig> ParseDirection(std::string_view name, double beta, double beta2) {
  for (const auto& entry : kNames) {
    if (name != entry.name) continue;
    SIGNVOTE_RETURN_IF_ERROR(CheckBeta("beta", beta));
    SIGNVOTE_RETURN_IF_ERROR(CheckBeta("beta2", beta2));
    return DirectionConfig{.kind = entry.kind, .beta = beta, .beta2 = beta2};
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown direction \"", std::string(name),
                                                 "\"; use one of signsgd, signum, nesterov, lion"));
}

std::string DirectionName(DirectionKind kind) {
  for (const auto& entry : kNames) {
    if (entry.kind == kind) return entry.name;
  }
  return "unknown";
}

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
