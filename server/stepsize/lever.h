#pragma once
// Lever (ours): a stepsize from a race of short trials, then moved by what says whether all steps so
// far were too short or too long. Nothing to tune: from 640 rounds on any start value will do, and a
// shorter race that ends at its edge says so. docs/algorithms/lever.md.

#include <cstdint>
#include <memory>
#include <optional>

#include "server/stepsize/local_schedule.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote {

// T = main_rounds.   h = clamp(T/16, 30, max(60, T/80)),  h' = max(16, h/3)
//
//   phase A   the race (race.h): no main rounds, ⌊T/4⌋ rounds at most; it ends with a rewind
//   phase B   the run, again from x_0:  s_0 = κ·γ_h, LeverKappa()
//             γ_t = s·(1 − t/T),  ρ_t = s/s_prev: everybody rescales, then steps
//             in the rounds h ≤ t < ¾T every worker sends ⟨g, x_0 − x⟩ and ‖x − x_0‖₂, and s moves
//             (lever_scale.h); from ¾T on it stays. With raw signs it grows with the part
//             min(1, 4t/T) of the gain only: early in a run longer steps always look better, and
//             noise that no momentum calms carries those who take them off for good
//   lite      ρ = 1, G = 1, s stays from T/2 on: nothing is rescaled
//   no race   s_0 = start
//   T = 0     unknown length: legs of 1,000, 2,000, 4,000, … main rounds, each with a schedule of its own
//             that begins at the s where the last one ended. s moves in the first leg only: later ones
//             would need the distance from where they began, and x_0 is where the run began
//
// With local steps (docs/algorithms/local_steps.md) T, t, h and h' count minibatches, and
//   phase A   a trial is four silent rounds: nobody votes, workers say their losses, and what they trained
//             goes on in the next; T/4 minibatches at most; s_0 as without local steps, with raw
//             signs γ_h/3
//   phase B   η of a minibatch t is s·(1 − t/T); z is the workers' own over the round's minibatches, in
//             the rounds with T/16 ≤ t < ¾T, and s moves by LeverScale::MoveOver() with G = 2 (lite: 1)
//
// A race in which no trial lowers the loss ends the run (StepsizeRule::failure(), ABORTED) with a rewind.
// A round whose scalars do not come, or say nothing, leaves s as it is; the schedule goes on.
enum class LeverForm { kFull, kLite };

struct LeverConfig {
  LeverForm form = LeverForm::kFull;
  double start = 1e-3;    // a positive fp32 number
  bool momentum = false;  // the direction has one
  // Needs main_rounds = 0 or ≥ kLeverRaceRoundsMin; with local steps as many minibatches.
  bool race = true;
  uint64_t main_rounds = 0;
  LocalSchedule local;  // of main_rounds, which are then known
  // The 16 and the 30 above, which are smaller in tests: h' ≤ T/20.
  uint64_t short_trial_min = 16, long_trial_min = 30;
};

// In shorter runs a quarter of the run does not pay for two trials and three more of ≥ 16 rounds.
inline constexpr uint64_t kLeverRaceRoundsMin = 320;

// κ: the run begins below γ_h, the best of `trial_rounds` rounds, for too long early steps do damage that
// never heals, and s grows. ½ with momentum, ¼ right below a stepsize that stood still (Race::below_still());
// 8·trial_rounds/rounds for raw signs, whose best stepsize falls about like the length of a run.
double LeverKappa(bool momentum, bool below_still, uint64_t trial_rounds, uint64_t rounds);

// REQUIRES: values in the ranges above.
std::unique_ptr<StepsizeRule> MakeLeverRule(const LeverConfig& config);

}  // namespace signvote
