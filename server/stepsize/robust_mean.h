#pragma once
// One number from the scalars of many workers, of whom some may lie.

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "server/stepsize/types.h"

namespace signvote {

// The middle value, or the mean of the two middle ones. Reorders them. REQUIRES: not empty.
double Median(std::vector<double>& values);

// The mean of one quantity over workers, as docs/algorithms/README.md defines it: non-finite
// values are left out; n ≤ 2: plain mean; else clipped to median ± 3·1.48·MAD, then the mean.
// nullopt when no finite value remains. The order of the values does not matter, to the last bit.
std::optional<double> RobustMean(std::span<const double> values);

// One worker's part of a quotient of sums.
struct RatioPart {
  double numerator = 0;
  double weight = 0;  // ≥ 0
};

// Σp/Σq over workers, of whom some may lie: parts that are not finite or whose weight is not above 0 are
// left out; n ≤ 2: plain; else those whose p_j/q_j is beyond median ± 3·1.48·MAD are left out too, and q_j
// is capped at 3·median, before both are summed. Left out and not clipped: where the quotient is small
// beside its noise, a liar that is clipped would decide its sign, round after round. nullopt when no part
// remains.
std::optional<double> RobustRatio(std::span<const RatioPart> parts);

// RobustMean of each tensor's length over the workers that sent one for each of `tensors`; 0 where
// nobody did. Rounded once to fp32.
std::vector<float> RobustLengths(std::span<const WorkerScalars> workers, size_t tensors);

}  // namespace signvote
