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

  LocalSteps Local(const RoundAhead& ahead) const override {
    if (!config_.local.on()) return {};
    const uint32_t steps = config_.local.StepsAt(ahead.main_rounds);
    const uint64_t t = config_.local.Before(ahead.main_rounds);
    return {.steps = steps,
            .eta_first = static_cast<float>(config_.gamma0 * LocalFactor(t)),
            .eta_last = static_cast<float>(config_.gamma0 * LocalFactor(t + steps - 1))};
  }
  uint32_t local_steps_max() const override { return config_.local.largest(); }

  StepsizeDecision Decide(const RuleInput& input) override {
    const double factor =
        config_.local.on()
            ? LocalFactor(config_.local.Before(input.ahead.main_rounds))
            : ScheduleFactor(config_.schedule, input.ahead.main_rounds, input.main_rounds_max);
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
  double LocalFactor(uint64_t t) const {
    return ScheduleFactor(config_.schedule, t, config_.local.minibatches());
  }

  const FixedConfig config_;
};

}  // namespace

std::unique_ptr<StepsizeRule> MakeFixedRule(const FixedConfig& config) {
  return std::make_unique<FixedRule>(config);
}

}  // namespace signvote
