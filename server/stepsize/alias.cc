#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote {
namespace {

constexpr double kFirstStepRelative = 1e-5;

class AliasRule final : public StepsizeRule {
 public:
  explicit AliasRule(const AliasConfig& config) : config_(config), d_(config.d0) {
    SIGNVOTE_CHECK(std::isfinite(config.d0) && config.d0 > 0);
    SIGNVOTE_CHECK(std::isfinite(config.f_min));
    SIGNVOTE_CHECK(config.probe_every > 0);
  }

  std::string_view name() const override { return "alias"; }

  bool WantsProbe(Round round) const override {
    return round.value() >= 1 && (round.value() - 1) % config_.probe_every == 0;
  }

  StepsizeDecision Decide(const RuleInput& input) override {
    if (!f0_.has_value())
      f0_ = MeanOf(input, [](const WorkerScalars& w) { return std::optional(w.loss); });
    if (!started_) {
      started_ = true;
      const double size = std::isfinite(input.x0_max_abs) ? std::max(1.0, input.x0_max_abs) : 1.0;
      gamma_ = static_cast<float>(kFirstStepRelative * size);
      return Decision("alias: first step");
    }
    Accumulate(input);
    if (input.workers.empty()) return Decision("alias: no scalars: kept");
    return Next();
  }

 private:
  template <typename Field>
  static std::optional<double> MeanOf(const RuleInput& input, Field field) {
    std::vector<double> values;
    values.reserve(input.workers.size());
    for (const WorkerScalars& worker : input.workers) {
      if (const std::optional<double> value = field(worker)) values.push_back(*value);
    }
    return RobustMean(values);
  }

  void Accumulate(const RuleInput& input) {
    const double gamma = gamma_;
    if (WantsProbe(input.round)) {
      const auto probe = MeanOf(input, [](const WorkerScalars& w) { return w.probe_l1; });
      if (probe.has_value() && *probe >= 0) {
        const double eta = eta_ + static_cast<double>(config_.probe_every) *
                                      (*probe / (gamma * input.step_scale_max));
        if (std::isfinite(eta)) eta_ = eta;
      }
    }
    if (config_.option == AliasOption::kOptionI) {
      const auto inner = MeanOf(input, [](const WorkerScalars& w) { return w.prev_inner; });
      if (inner.has_value() && std::isfinite(a_ + gamma * *inner)) {
        a_ += gamma * *inner;
        d_ = std::max(d_, a_);
      }
    }
  }

  StepsizeDecision Next() {
    if (eta_ <= 0) return Decision("alias: eta=0: kept");
    if (config_.option == AliasOption::kOptionII && !f0_.has_value()) {
      return Decision("alias: f(x0) unknown: kept");
    }
    const double num = Numerator();
    if (num <= 0) {
      return Decision(absl::StrFormat(
          "alias: num=%.6g is not positive: kept; is the lower bound %.6g of the loss "
          "too high?",
          num, config_.f_min));
    }
    const float gamma = static_cast<float>(std::sqrt(num / eta_));
    if (!std::isfinite(gamma) || gamma <= 0) {
      return Decision(
          absl::StrFormat("alias: eta=%.6g num=%.6g give no fp32 stepsize: kept", eta_, num));
    }
    gamma_ = gamma;
    return Decision(absl::StrFormat("alias: eta=%.6g num=%.6g", eta_, num));
  }

  double Numerator() const {
    return config_.option == AliasOption::kOptionI ? d_
                                                   : f0_.value_or(config_.f_min) - config_.f_min;
  }

  StepsizeDecision Decision(std::string reason) const {
    StepsizeDecision decision;
    decision.gamma = gamma_;
    decision.reason = std::move(reason);
    decision.state = {{"eta", eta_}, {"num", Numerator()}};
    if (config_.option == AliasOption::kOptionI) decision.state.emplace_back("a", a_);
    if (f0_.has_value()) decision.state.emplace_back("f0", *f0_);
    return decision;
  }

  const AliasConfig config_;
  bool started_ = false;
  float gamma_ = 0;  // the last committed stepsize
  double eta_ = 0;
  double a_ = 0;              // Option I: Σ γ_i⟨g_{i+1}, b_i⟩
  double d_;                  // Option I: the largest a_ so far, at least d0
  std::optional<double> f0_;  // f(x_0)
};

}  // namespace

std::unique_ptr<StepsizeRule> MakeAliasRule(const AliasConfig& config) {
  return std::make_unique<AliasRule>(config);
}

}  // namespace signvote
