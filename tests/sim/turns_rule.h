#pragma once
// A stepsize rule for tests: it takes turns between everything that a commit can do, so that rewinds,
// rescalings about x0 and rounds that are no main rounds pass every part of a run.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/stepsize/stepsize_rule.h"

namespace signvote::sim {

class TurnsRule final : public StepsizeRule {
 public:
  explicit TurnsRule(uint64_t seed) : seed_(seed) {}

  std::string_view name() const override { return "turns"; }
  bool probes() const override { return true; }
  bool needs_x0() const override { return true; }
  bool x0_over(const RoundAhead& ahead) const override;
  std::vector<ScalarKind> Wanted(const RoundAhead& ahead) const override;
  StepsizeDecision Decide(const RuleInput& input) override;
  std::string Save() const override;
  absl::Status Restore(std::string_view bytes) override;

 private:
  const uint64_t seed_;
  uint64_t decisions_ = 0;
  double gamma_ = 1e-3;
};

}  // namespace signvote::sim
