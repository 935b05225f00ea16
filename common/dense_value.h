#pragma once
// What may stand in a dense ballot (docs/wire_format.md, "Packed bits").

#include <cmath>

namespace signvote {

// Far beyond any gradient, and so far below the largest fp32 (3.4e38) that its square, a moment of it and
// an update made of that are finite: one ballot may move a mean, and must not end an optimizer.
inline constexpr float kDenseValueMax = 1e18f;

// Finite, and at most kDenseValueMax in magnitude.
inline bool IsDenseValue(float value) { return std::abs(value) <= kDenseValueMax; }

}  // namespace signvote
