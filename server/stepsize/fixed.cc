#include "server/stepsize/fixed.h"

#include <cmath>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "server/stepsize/rule_state.h"

namespace signvote {
namespace {

constexpr uint32_t kStateVersion = 1;

class FixedRule final : public StepsizeRule {
 public:
  explicit FixedRule(const FixedConfig& config) : config_(config) {
    SIGNVOTE_CHECK(std::isfinite(config.gamma0) && config.gamma0 > 0);
    SIGNVOTE_CHECK(config.schedule.decay_fraction > 0 && config.schedule.decay_fraction <= 1);
  }

  std::string_view name() const override { return "fixed"; }
  bool probes() const override { return false; }
  bool needs_x0() const override { return false; }
  std::vector<ScalarKind> Wanted(const RoundAhead&) const override { return {}; }

  StepsizeDecision Decide(const RuleInput& input) override {
    const double factor =
        ScheduleFactor(config_.schedule, input.ahead.main_rounds, input.main_rounds_max);
    StepsizeDecision decision;
    decision.gamma = static_cast<float>(config_.gamma0 * factor);
    decision.reason = absl::StrFormat("fixed: %.6g of %.6g", factor, config_.gamma0);
    decision.state = {{"factor", factor}};
    return decision;
  }

  // A schedule is a function of the round: there is nothing to remember.
  std::string Save() const override { return RuleStateWriter(name(), kStateVersion).Take(); }
  absl::Status Restore(std::string_view bytes) override {
    return RuleStateReader(bytes, name(), kStateVersion).Finish();
  }

 private:
  const FixedConfig config_;
};

}  // namespace

std::unique_ptr<StepsizeRule> MakeFixedRule(const FixedConfig& config) {
  return std::make_unique<FixedRule>(config);
}

}  // namespace signvote
