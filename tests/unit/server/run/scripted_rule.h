#pragma once
// A stepsize rule that decides what a test wrote down.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/stepsize/stepsize_rule.h"

namespace signvote::run {

// What no rule emits yet: a rule whose every answer is written down.
class ScriptedRule final : public StepsizeRule {
 public:
  explicit ScriptedRule(std::vector<StepsizeDecision> script, bool needs_x0 = true)
      : script_(std::move(script)), needs_x0_(needs_x0) {}
  std::string_view name() const override { return "scripted"; }
  bool probes() const override { return true; }
  bool needs_x0() const override { return needs_x0_; }
  std::vector<ScalarKind> Wanted(const RoundAhead&) const override {
    return {ScalarKind::kX0Inner, ScalarKind::kProbeL1};
  }
  size_t WantedOf(const RoundAhead&, Share share, size_t wanted) const override {
    return share == Share(0) ? wanted : 1;
  }
  bool x0_over(const RoundAhead& ahead) const override {
    return !needs_x0_ || ahead.main_rounds >= x0_main_rounds_;
  }
  bool keeps_gradients() const override { return true; }
  StepsizeDecision Decide(const RuleInput& input) override {
    seen_ = input.workers.empty() ? 0 : input.workers[0].wanted[0];
    return script_.at(next_++);
  }
  std::string Save() const override { return std::to_string(next_); }
  absl::Status Restore(std::string_view bytes) override {
    next_ = bytes.empty() ? 0 : std::stoul(std::string(bytes));
    return absl::OkStatus();
  }
  double seen_ = 0;
  uint64_t x0_main_rounds_ = UINT64_MAX;  // from which on it lets go of x0

 private:
  const std::vector<StepsizeDecision> script_;
  const bool needs_x0_;
  size_t next_ = 0;
};

}  // namespace signvote::run
