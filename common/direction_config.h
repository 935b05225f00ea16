#pragma once
// What a direction is, by name and numbers: the one list that flags, wire, pages and kernels use.
// docs/algorithms.md, "Directions".

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"

namespace signvote {

enum class DirectionKind : uint8_t { kSignSgd, kSignum, kNesterovSignum, kLion };

struct DirectionConfig {
  DirectionKind kind = DirectionKind::kSignum;
  double beta = 0.9;    // Signum, Nesterov-Signum: β; Lion: the weight of m in u (β1)
  double beta2 = 0.99;  // Lion only: decay of m (β2)
};

// One buffer of a direction's state: one element per coordinate.
struct StatePlane {
  std::string_view name;     // unique within the direction
  size_t element_bytes = 4;  // 4: fp32
};

// "signsgd", "signum", "nesterov", "lion". INVALID_ARGUMENT names the accepted words; betas must
// lie in [0, 1).
absl::StatusOr<DirectionConfig> ParseDirection(std::string_view name, double beta, double beta2);
std::string_view DirectionName(DirectionKind kind);
// The state that the direction keeps, in the order in which it is saved; empty for signSGD. Valid
// for ever.
std::span<const StatePlane> PlanesOf(DirectionKind kind);

}  // namespace signvote
