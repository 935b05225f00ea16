#include "server/stepsize/types.h"

#include <cmath>

namespace signvote {
namespace {

bool IsNorm(ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kProbeL1:
    case ScalarKind::kChangeL1:
    case ScalarKind::kX0Distance:
    case ScalarKind::kLocalProduct:
      return true;
    case ScalarKind::kPrevInner:
    case ScalarKind::kProbeInner:
    case ScalarKind::kGradientMax:
    case ScalarKind::kGradientMin:
    case ScalarKind::kX0Inner:
    case ScalarKind::kLocalInner:
      break;
  }
  return false;
}

bool FiniteNorm(double v) { return std::isfinite(v) && v >= 0; }

}  // namespace

std::optional<double> ScalarOf(const WorkerScalars& scalars, std::span<const ScalarKind> asked,
                               ScalarKind kind) {
  for (size_t i = 0; i < asked.size() && i < scalars.wanted.size(); ++i) {
    if (asked[i] == kind && !std::isnan(scalars.wanted[i])) return scalars.wanted[i];
  }
  return std::nullopt;
}

bool Plausible(const WorkerScalars& scalars, std::span<const ScalarKind> asked) {
  if (!std::isfinite(scalars.loss) || !FiniteNorm(scalars.g_l1) ||
      !FiniteNorm(scalars.g_l2_squared) || scalars.wanted.size() > asked.size()) {
    return false;
  }
  for (const float length : scalars.displacement_mean) {
    if (!FiniteNorm(static_cast<double>(length))) return false;
  }
  for (size_t i = 0; i < scalars.wanted.size(); ++i) {
    const double v = scalars.wanted[i];
    if (std::isnan(v)) continue;
    if (!std::isfinite(v) || (IsNorm(asked[i]) && v < 0)) return false;
  }
  return true;
}

Share ShareOf(const RuleInput& input, size_t i) {
  return input.shares.empty() ? Share(static_cast<uint32_t>(i)) : input.shares[i];
}

}  // namespace signvote
