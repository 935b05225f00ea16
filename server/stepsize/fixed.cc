#include "server/stepsize/fixed.h"

#include <algorithm>
#include <cmath>
#include <numbers>

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
    SIGNVOTE_CHECK(config.decay_fraction > 0 && config.decay_fraction <= 1);
  }

  std::string_view name() const override { return "fixed"; }
  bool probes() const override { return false; }
  bool needs_x0() const override { return false; }
  std::vector<ScalarKind> Wanted(const RoundAhead&) const override { return {}; }

  StepsizeDecision Decide(const RuleInput& input) override {
    const double factor = Factor(input.ahead.main_rounds, input.main_rounds_max);
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
  double Factor(uint64_t round, uint64_t rounds_max) const {
    const uint64_t warmup = config_.warmup_rounds;
    double warm = 1;
    if (round < warmup) warm = (static_cast<double>(round) + 1) / static_cast<double>(warmup);
    if (rounds_max == 0) return warm;
    const uint64_t t = std::min(round, rounds_max - 1);
    double p = 0;
    if (t > warmup) p = static_cast<double>(t - warmup) / static_cast<double>(rounds_max - warmup);
    switch (config_.schedule) {
      case ScheduleKind::kConstant:
        return warm;
      case ScheduleKind::kCosine:
        return std::min(warm, 0.5 * (1 + std::cos(std::numbers::pi * p)));
      case ScheduleKind::kLinear:
        return std::min(warm, 1 - p);
      case ScheduleKind::kWsd: {
        const double decay = std::ceil(config_.decay_fraction * static_cast<double>(rounds_max));
        return std::min(warm, static_cast<double>(rounds_max - t) / decay);
      }
    }
    return warm;
  }

  const FixedConfig config_;
};

}  // namespace

std::unique_ptr<StepsizeRule> MakeFixedRule(const FixedConfig& config) {
  return std::make_unique<FixedRule>(config);
}

}  // namespace signvote
