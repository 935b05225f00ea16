#pragma once
// Which runs of a sweep come next, from those that are done: pure, so that a sweep which was stopped
// goes on as it would have gone.
//
// A grid over the stepsize begins with five values √10 apart, about its middle; goes on by √10 where the
// best lies at an end; then tries the values halfway to the best one's neighbours. A value counts by the
// mean of its seeds' held-out losses; a run that diverged counts as worse than any other.

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "lab/sweep/spec.h"

namespace signvote::lab {

// Steps of a grid are quarters of a decade: √10 is two.
double GridStepsize(double middle, int step);

// The steps to try next, from the losses of those that are done; empty: the grid is tuned.
std::vector<int> NextGridSteps(const std::map<int, double>& losses);

// Held-out losses by SweepCell::id; +∞: the run diverged.
using LossesById = std::map<std::string, double>;

struct SweepPlan {
  std::vector<SweepCell> known;  // that are known to be needed, done or not
  std::vector<SweepCell> next;   // not done, in order; some of them may be running
  size_t done = 0;               // of those that are known
};
SweepPlan PlanSweep(const SweepSpec& spec, const LossesById& done);

}  // namespace signvote::lab
