#include "common/direction_config.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
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

constexpr StatePlane kMomentum[] = {{.name = "m", .element_bytes = sizeof(float)}};

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

std::string_view DirectionName(DirectionKind kind) {
  for (const auto& entry : kNames) {
    if (entry.kind == kind) return entry.name;
  }
  return "unknown";
}

std::span<const StatePlane> PlanesOf(DirectionKind kind) {
  if (kind == DirectionKind::kSignSgd) return {};
  return kMomentum;
}

}  // namespace signvote
