#pragma once
// ALIAS (arXiv 2506.03725, Algorithm 2): a stepsize from the observed change of the gradient.

#include <cstdint>
#include <memory>

#include "server/stepsize/stepsize_rule.h"

namespace signvote {

enum class AliasOption { kOptionI, kOptionII };

// "mean" is RobustMean over the workers of one round, s = step_scale_max, t the main rounds
// committed before:
//   γ_0 = 1e-5·max(1, max|x_0|)                    so that the first step is not absorbed in fp32
//   η  += probe_every · mean(probe_l1) / (γ_{t−1}·s)   in the main rounds 1, 1 + k, 1 + 2k, …, which
//      are those that want kProbeL1
//   Option I:   a += γ_{t−1}·mean(prev_inner);  num = d = max(d, a), d starts at d0; every round
//      but the first wants kPrevInner
//   Option II:  num = f(x_0) − f_min,  f(x_0) = mean loss of the first round that has one
//   γ_t = √(num/η), computed in double and rounded once to fp32; γ_{t−1} above is the committed
//   fp32 value.
// γ is kept, and the reason says so, while η = 0, while f(x_0) is unknown, when num ≤ 0, and when
// √(num/η) is not a positive finite fp32 number. γ_0 and d0 are choices of ours, the paper has none.
struct AliasConfig {
  AliasOption option = AliasOption::kOptionII;
  double d0 = 1e-6;          // Option I: the small starting value of d, > 0
  double f_min = 0.0;        // Option II: f̃, a lower bound of the loss
  uint64_t probe_every = 1;  // a probe in every k-th round; its increment counts k times
};

// REQUIRES: values in the ranges above.
std::unique_ptr<StepsizeRule> MakeAliasRule(const AliasConfig& config);

}  // namespace signvote
