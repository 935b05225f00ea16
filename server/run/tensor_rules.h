#pragma once
// What the operator says of single tensors, by their names: step scale, weight decay, treatment, and
// which are dense.
//
// A pattern is one of fnmatch(3): * stands for any characters, ? for one, [ab] for one of them, and
// it is the whole name that must match. Of several rules that say something of the same tensor the
// last one counts.
//
// Threads: pure functions.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"

namespace signvote::run {

struct TensorRule {
  std::string flag;     // that it came from, such as "--tensor-scale"
  std::string pattern;  // of names
  // Exactly one of these is there.
  std::optional<float> step_scale;
  // Step scale 1/√(inputs): the product of all dimensions but the first; 1 with fewer than two.
  bool fan_in = false;
  std::optional<float> weight_decay;
  std::optional<TensorTreatment> treatment;
  bool dense = false;
};

// "PATTERN=VALUE,PATTERN=VALUE": a scale is a number above 0, at most 10⁶, or "fan-in", a decay one
// from 0 to 1, a treatment "usual", "sparse" or "plain"; "" is no rule. INVALID_ARGUMENT: one sentence
// with the flag and what it takes.
absl::StatusOr<std::vector<TensorRule>> ParseTensorScales(std::string_view text);
absl::StatusOr<std::vector<TensorRule>> ParseTensorDecays(std::string_view text);
absl::StatusOr<std::vector<TensorRule>> ParseTensorTreatments(std::string_view text);
// "PATTERN,PATTERN": tensors that match one of them are dense.
absl::StatusOr<std::vector<TensorRule>> ParseDense(std::string_view text);

// FAILED_PRECONDITION: a rule's pattern matches none of the tensors, of which some are named; or a tensor
// is dense, and its treatment not the usual one.
absl::Status ApplyTensorRules(std::span<const TensorRule> rules, std::vector<TensorSpec>* tensors);

// Whether a rule makes tensors dense.
bool AnyDense(std::span<const TensorRule> rules);

}  // namespace signvote::run
