#pragma once
// Mechanic on votes: the scale of all steps so far, learnt by betting. A rival.
// Source: Cutkosky, Defazio, Mehta, "Mechanic: A Learning Rate Tuner", NeurIPS 2023 (arXiv 2306.00144),
// Algorithm 1, with the clipping of the authors' code. docs/algorithms/rivals.md says what is ours.

#include <memory>

#include "server/stepsize/schedule.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote {

// S, and with it s_0, stays within these.
inline constexpr double kMechanicStartMin = 1e-12, kMechanicStartMax = 1e12;

// x_t = x_0 + S_t·Δ_t, Δ_{t+1} = Δ_t − f_t·b_t with f_t = ScheduleFactor(schedule, t, T) and b_t the
// verdict. "mean" is RobustMean over the workers of one round. For β_i = 1 − 10^−i, i = 1 … 6, ε = 1e-8:
//   h = mean⟨g, x_0 − x_t⟩ / S_t
//   r_i ← β_i·r_i + clip(h, ±m_i)·s_i ;  m_i ← max(β_i·m_i, |h| + ε) ;  v_i ← β_i²·v_i + h²
//   s_i ← (s_0/6·m_i + max(0, r_i)) / (√v_i + ε) ;  S = Σ s_i
//   γ_t = S_{t+1}·f_t,  ρ_t = S_{t+1}/S_t: everybody rescales, then steps
// s_0 = start, or FirstStepsize(max|x_0|) where start is 0: with the paper's 1e-8 the first steps would
// be absorbed in fp32, and h would stay 0. The paper's λ term (.01) is left out: it needs two more sums.
// A round whose scalars do not come leaves S as it is; the schedule goes on.
struct MechanicConfig {
  double start = 0;  // 0, or within that range
  Schedule schedule;
};

// REQUIRES: values in the ranges above.
std::unique_ptr<StepsizeRule> MakeMechanicRule(const MechanicConfig& config);

}  // namespace signvote
