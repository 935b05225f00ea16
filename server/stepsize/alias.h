#pragma once
// ALIAS (arXiv 2506.03725, Algorithm 2): a stepsize from the observed change of the gradient.

#include <cstdint>
#include <memory>

#include "server/stepsize/alias_curvature.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote {

enum class AliasOption { kOptionI, kOptionII };

// "mean" is RobustMean over the workers of one round, s = step_scale_max, t the main rounds
// committed before, T = main_rounds_max:
//   start       the rounds t < W, with W = clamp(⌊T/20⌋, 1, 8), and 8 where T is unknown
//   γ_0       = 1e-5·max(1, max|x_0|)              so that the first step is not absorbed in fp32
//   f(x_0)    = the mean over the start of mean(loss), rounds without a loss left out; where none has
//               one, that of the first round that does
//   η_0       = eta0, and (f(x_0) − f_min)/resumed_stepsize² more where a run goes on from another's
//               parameters, once f(x_0) is known
//   η        += r·ℓ_t                             ℓ_t as its form says (alias_curvature.h), in the main
//               rounds from 1 on in which somebody told it; r: steps since the last round that had one,
//               since x_0 before the first. So a probe stands for the rounds of those that were missed
//   Option I:   a += γ_{t−1}·mean(prev_inner);  num = d = max(d, a), d starts at d0; every round but
//               the first wants kPrevInner
//   Option II:  num = f(x_0) − f_min
//   γ_t       = γ_0 in the start, then √(num/η), computed in double and rounded once to fp32; γ_{t−1}
//               above is the committed fp32 value
// γ is kept, and the reason says so, while η = 0, while f(x_0) is unknown, when num ≤ 0, and when
// √(num/η) is not a positive finite fp32 number. A person is warned when no probe has been counted for
// 8 steps (for 2k where that is more, once η > 0), when f(x_0) ≤ f_min under Option II, and all along when
// x_0 may be trained already and nothing says where γ could go on from.
// γ_0, d0, the start and η_0 are choices of ours, the paper has none; docs/algorithms/alias.md says why.
struct AliasConfig {
  AliasOption option = AliasOption::kOptionII;
  double d0 = 1e-6;    // Option I: the small starting value of d, > 0
  double f_min = 0.0;  // f̃, a lower bound of the loss
  AliasForm form = AliasForm::kSame;
  uint64_t probe_every = 1;  // k: every worker probes in every k-th round, in turns
  double extrema_scale = 1;  // of AliasForm::kExtrema
  double eta0 = 0;           // ≥ 0
  // At which the run stood that x_0 comes from: with the η_0 that follows from it γ never begins
  // above it. 0: x_0 comes from no such run.
  float resumed_stepsize = 0;
  // x_0 comes from elsewhere and may be trained already, and neither eta0 nor resumed_stepsize is known.
  bool unknown_start = false;
};

// REQUIRES: values in the ranges above, all finite.
std::unique_ptr<StepsizeRule> MakeAliasRule(const AliasConfig& config);

}  // namespace signvote
