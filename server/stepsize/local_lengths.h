#pragma once
// How far each tensor moves in a round with local steps: docs/algorithms/local_steps.md.

#include <optional>
#include <span>
#include <vector>

#include "server/stepsize/types.h"

namespace signvote {

// What a commit says of one round's displacements.
struct LocalLengths {
  std::vector<float> scales;  // S_k / step_scale_k, per tensor: apply multiplies by step_scale_k
  float decay_step = 0;       // Σ η(h)
};

// REQUIRES: step scales > 0; dense_steps has as many entries, or none.
// S_k: the robust mean (robust_mean.h) of the workers' mean |D| of tensor k, each at most
// E_k = step_scales[k]·Σ η(h), because an inner step moves no coordinate farther; rounded once to fp32.
// A worker that took fewer minibatches says what it moved, and that counts as it is. Left out is who
// has not one length for each tensor, or one that is not finite or negative. nullopt: nobody is left.
// A dense tensor moves by an update that has a length of its own: in place of S_k stands dense_steps[k],
// by which that is multiplied; 0: tensor k is voted on.
std::optional<LocalLengths> MeanLengths(const LocalSteps& local, std::span<const float> step_scales,
                                        std::span<const float> dense_steps,
                                        std::span<const WorkerScalars> workers);

}  // namespace signvote
