#pragma once
// Prodigy on votes: the distance to the solution, estimated from below, as the stepsize. A rival.
// Source: Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", ICML
// 2024 (arXiv 2306.06101), Algorithm 4, and the authors' code. docs/algorithms/rivals.md says what is
// ours in it.

#include <memory>

#include "server/stepsize/schedule.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote {

// "mean" is RobustMean over the workers of one round, f_t = ScheduleFactor(schedule, t, T), β3 = √.999:
//   a ← β3·a + (d/d_0)·d·f_t·mean⟨g, x_0 − x_t⟩
//   b ← β3·b + (d/d_0)·d·f_t·mean‖g‖₁
//   d ← max(d, a/b);   γ_t = d·f_t
// d_0 = d0, or FirstStepsize(max|x_0|) where d0 is 0. The paper's b is the ℓ₁ norm of the sum of
// gradients, a vector that nobody keeps here; the sum of their norms is an upper bound of it, so d stays
// a lower bound.
// A round whose scalars do not come leaves d as it is; the schedule goes on.
struct ProdigyConfig {
  double d0 = 0;  // ≥ 0, a positive fp32 number where it is not 0
  Schedule schedule;
};

// REQUIRES: values in the ranges above.
std::unique_ptr<StepsizeRule> MakeProdigyRule(const ProdigyConfig& config);

}  // namespace signvote
