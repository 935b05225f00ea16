#pragma once
// A tiny noisy quadratic that stands for the neural network: gradients are pure functions of
// replica, share and data step, so every ballot of a simulated run can be recomputed.

#include <cstdint>
#include <vector>

#include "common/ids.h"
#include "common/layout.h"

namespace signvote::sim {

// f(x) = (1/d)·Σ ½·h_i·(x_i − t_i)²; a minibatch adds noise to the gradient.
class Model {
 public:
  // REQUIRES: coordinates is a multiple of 8, at least 512.
  // `dense`: the run says that its last tensor, "c", is.
  Model(uint64_t coordinates, uint64_t chunk_coordinates, float weight_decay, bool dense);

  // As a worker describes it: scales 1, no decay.
  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  // As the run has it.
  const Layout& run_layout() const { return run_layout_; }
  const ChunkPlan& plan() const { return plan_; }
  std::vector<float> Start() const { return std::vector<float>(plan_.coordinates(), 0.25f); }
  // Fills `g` with the gradient of minibatch (seed, share, step) at x; returns its loss.
  double Gradient(const std::vector<float>& x, uint64_t seed, Share share, DataStep step,
                  std::vector<float>* g) const;
  // The held-out loss of the replica with this digest on the windows with that hash.
  static double HeldOutLoss(uint64_t digest, uint64_t windows);

 private:
  std::vector<TensorSpec> tensors_;
  Layout run_layout_;
  ChunkPlan plan_;
  std::vector<float> curvature_;
  std::vector<float> target_;
};

}  // namespace signvote::sim
