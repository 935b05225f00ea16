#pragma once
// SOS: a search over whole short runs for one constant stepsize. A rival.
// Source: the first version of arXiv 2506.03725 names the method, φ(γ) = N(γ)/D(γ) and the bisection;
// what N and D are exactly no source that we could read says. This is our reconstruction, after Carmon
// and Hinder, "Making SGD Parameter-Free", COLT 2022. docs/algorithms/rivals.md.

#include <cstdint>
#include <memory>

#include "server/stepsize/stepsize_rule.h"

namespace signvote {

// T = main_rounds, or 1,000 where it is unknown; m = clamp(T/32, 16, 256).
// Trials of m rounds from x_0 with fresh direction state and the same minibatches, ⌊T/4⌋ rounds in all:
//   still    γ = 0
//   D(γ)     Σ over the trial's m − 1 steps of mean ‖∇f(x_t) − ∇f(x_{t−1})‖₁, both on the newest
//            minibatch: the mean over the rounds that tell, times m − 1
//   N(γ)     the decrease of the loss: that of the still trial less this one's, over the last quarter of
//            the rounds, pair by pair of (round, share)
//   widen    lo = start; hi = lo·4, lo·16, lo·256, lo·65,536, … while φ(hi) ≥ hi, and lo follows
//   bisect   mid = √(lo·hi): lo = mid where φ(mid) ≥ mid, else hi = mid, until hi ≤ 2·lo
// Then a rewind, and the run at γ = lo. Why: for convex f, γ Σ‖g‖₁ ≤ Δ + γ·D(γ); both terms are the same
// at γ = Δ/D(γ).
//
// Two rounds in a row without a finite loss or gradient: φ = 0. One alone is left out, and so is any of
// the still trial or before a trial's first vote: no stepsize is to blame. A trial in which a round closed
// without a verdict for another reason, without a probe, or with pairs in fewer than half of the last
// rounds tells nothing: it is run once more, and counts as too long then; the still trial is run again as
// long as there are rounds for another beside it. Where no trial told anything the rule says so.
struct SosConfig {
  double start = 0;  // ≥ 0, a positive fp32 number where it is not 0; 0: FirstStepsize(max|x_0|)
  uint64_t main_rounds = 0;  // 0 or ≥ 12·trial_min: room for three trials
  uint64_t trial_min = 16;   // smaller in tests, ≥ 2
};

inline constexpr uint64_t kSosRoundsMin = 192;

// REQUIRES: values in the ranges above.
std::unique_ptr<StepsizeRule> MakeSosRule(const SosConfig& config);

}  // namespace signvote
