#pragma once
// The flags of dense tensors: which they are, how they travel, and what moves them (docs/algorithms/dense.md).

#include <string>

#include <CLI/CLI.hpp>

#include "absl/status/status.h"
#include "server/run/run.h"

namespace signvote {

// What of them is words. The optimizer's numbers lie where the run has them.
struct DenseWords {
  std::string patterns, wire = "f32", optimizer = "adamw";
};

// Adds them to the app's present group. Both must outlive parsing.
void AddDenseFlags(CLI::App* app, DenseWords* words, run::DenseOptions* dense);

// Fills in the optimizer's kind, wire and the run's length. INVALID_ARGUMENT names a flag that nothing
// reads, a number out of its range, or what does not go with the optimizer. REQUIRES: all else of `run` is
// as its flags say, tensor_rules among it.
absl::Status FinishDense(const DenseWords& words, run::RunOptions* run);

}  // namespace signvote
