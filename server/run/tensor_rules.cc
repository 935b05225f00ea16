#include "server/run/tensor_rules.h"

#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status.h"

namespace signvote::run {
namespace {

constexpr size_t kNamesShown = 3;
// Any stepsize that moves the other tensors would throw this one beyond use.
constexpr float kStepScaleMax = 1e6f;

// One "PATTERN=VALUE" each; the last = divides, as no value has one.
template <typename SetValue>
absl::StatusOr<std::vector<TensorRule>> Parse(std::string_view flag, std::string_view text,
                                              std::string_view takes, const SetValue& set) {
  std::vector<TensorRule> rules;
  if (text.empty()) return rules;
  for (const absl::string_view part : absl::StrSplit(ToAbsl(text), ',')) {
    const size_t divider = part.rfind('=');
    TensorRule rule;
    rule.flag = std::string(flag);
    if (divider != absl::string_view::npos) rule.pattern = std::string(part.substr(0, divider));
    if (rule.pattern.empty() || !set(std::string(part.substr(divider + 1)), &rule)) {
      return absl::InvalidArgumentError(absl::StrCat(
          ToAbsl(flag), " ", part, ": give PATTERN=", ToAbsl(takes), ", several with commas"));
    }
    rules.push_back(std::move(rule));
  }
  return rules;
}

std::optional<float> NumberIn(const std::string& text) {
  float value = 0;
  if (!absl::SimpleAtof(text, &value) || !std::isfinite(value)) return std::nullopt;
  return value;
}

bool Matches(const TensorRule& rule, const TensorSpec& tensor) {
  return fnmatch(rule.pattern.c_str(), tensor.name.c_str(), 0) == 0;
}

// REQUIRES: two dimensions or more.
double InputsOf(const TensorSpec& tensor) {
  double inputs = 1;
  for (const uint64_t size : std::span(tensor.shape).subspan(1))
    inputs *= static_cast<double>(size);
  return inputs;
}

void Set(const TensorRule& rule, TensorSpec* tensor) {
  if (rule.step_scale.has_value()) tensor->step_scale = *rule.step_scale;
  if (rule.fan_in) {
    tensor->step_scale =
        tensor->shape.size() < 2 ? 1.0f : static_cast<float>(1 / std::sqrt(InputsOf(*tensor)));
  }
  if (rule.weight_decay.has_value()) tensor->weight_decay = *rule.weight_decay;
  if (rule.treatment.has_value()) tensor->treatment = *rule.treatment;
  if (rule.dense) tensor->dense = true;
}

}  // namespace

absl::StatusOr<std::vector<TensorRule>> ParseTensorScales(std::string_view text) {
  return Parse("--tensor-scale", text, "a number above 0 and at most 1e6, or fan-in",
               [](const std::string& value, TensorRule* rule) {
                 rule->fan_in = value == "fan-in";
                 if (!rule->fan_in) rule->step_scale = NumberIn(value);
                 return rule->fan_in || (rule->step_scale.has_value() && *rule->step_scale > 0 &&
                                         *rule->step_scale <= kStepScaleMax);
               });
}

absl::StatusOr<std::vector<TensorRule>> ParseTensorDecays(std::string_view text) {
  return Parse("--tensor-decay", text, "a number from 0 to 1",
               [](const std::string& value, TensorRule* rule) {
                 rule->weight_decay = NumberIn(value);
                 return rule->weight_decay.has_value() && *rule->weight_decay >= 0 &&
                        *rule->weight_decay <= 1;
               });
}

absl::StatusOr<std::vector<TensorRule>> ParseTensorTreatments(std::string_view text) {
  return Parse("--tensor-treatment", text, "usual, sparse or plain",
               [](const std::string& value, TensorRule* rule) {
                 if (value == "usual") rule->treatment = TensorTreatment::kUsual;
                 if (value == "sparse") rule->treatment = TensorTreatment::kSparse;
                 if (value == "plain") rule->treatment = TensorTreatment::kPlain;
                 return rule->treatment.has_value();
               });
}

absl::StatusOr<std::vector<TensorRule>> ParseDense(std::string_view text) {
  std::vector<TensorRule> rules;
  if (text.empty()) return rules;
  for (const absl::string_view pattern : absl::StrSplit(ToAbsl(text), ',')) {
    if (pattern.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--dense ", ToAbsl(text), ": give PATTERN, several with commas"));
    }
    rules.push_back({.flag = "--dense", .pattern = std::string(pattern), .dense = true});
  }
  return rules;
}

bool AnyDense(std::span<const TensorRule> rules) {
  return std::any_of(rules.begin(), rules.end(), [](const TensorRule& rule) { return rule.dense; });
}

absl::Status ApplyTensorRules(std::span<const TensorRule> rules, std::vector<TensorSpec>* tensors) {
  for (const TensorRule& rule : rules) {
    bool matched = false;
    for (TensorSpec& tensor : *tensors) {
      if (!Matches(rule, tensor)) continue;
      Set(rule, &tensor);
      matched = true;
    }
    if (matched) continue;
    std::string names;
    for (const TensorSpec& tensor :
         std::span(*tensors).first(std::min(kNamesShown, tensors->size())))
      absl::StrAppend(&names, names.empty() ? "" : ", ", tensor.name);
    return absl::FailedPreconditionError(
        absl::StrCat(rule.flag, " ", rule.pattern, rule.dense ? "" : "=…",
                     ": no tensor of this model has such a name (", names,
                     tensors->size() > kNamesShown ? ", …" : "",
                     "); start the server with patterns of its names"));
  }
  for (const TensorSpec& tensor : *tensors) {
    if (!tensor.dense || tensor.treatment == TensorTreatment::kUsual) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("tensor ", tensor.name,
                     " is dense (--dense) and cannot have a --tensor-treatment as well, which says "
                     "how it is voted on; start the server with one of them for it"));
  }
  return absl::OkStatus();
}

}  // namespace signvote::run
