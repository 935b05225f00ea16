#pragma once
// One number from the scalars of many workers, of whom some may lie.

#include <optional>
#include <span>

namespace signvote {

// The mean of one quantity over workers, as docs/algorithms.md, "Stepsize", defines it: non-finite
// values are left out; n ≤ 2: plain mean; else clipped to median ± 3·1.48·MAD, then the mean.
// nullopt when no finite value remains. The order of the values does not matter, to the last bit.
std::optional<double> RobustMean(std::span<const double> values);

}  // namespace signvote
