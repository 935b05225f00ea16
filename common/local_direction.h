#pragma once
// What a local step goes along: docs/algorithms/local_steps.md.

#include "common/direction_config.h"

namespace signvote {

// The update itself and not its sign, so that the stepsize does not bound how far: of Adam and momentum
// SGD. Only dense tensors can say where that led.
constexpr bool LocalStepsByUpdate(const DirectionConfig& direction) {
  return direction.kind == DirectionKind::kAdam || direction.kind == DirectionKind::kMomentumSgd;
}

}  // namespace signvote
