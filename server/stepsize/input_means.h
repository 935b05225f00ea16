#pragma once
// What a round's workers say together.

#include <optional>

#include "server/stepsize/types.h"

namespace signvote {

// Robust means over the workers of one round; nullopt: nobody can tell.
std::optional<double> MeanLoss(const RuleInput& input);
std::optional<double> MeanL1(const RuleInput& input);  // of ‖g_j‖₁
std::optional<double> MeanOf(const RuleInput& input, ScalarKind kind);

}  // namespace signvote
