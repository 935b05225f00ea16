#include "server/stepsize/alias.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "server/stepsize/robust_mean.h"
#include "server/stepsize/rule_state.h"

namespace signvote {
namespace {

constexpr double kFirstStepRelative = 1e-5;
constexpr uint32_t kStateVersion = 1;

class AliasRule final : public StepsizeRule {
 public:
  explicit AliasRule(const AliasConfig& config) : config_(config), d_(config.d0) {
    SIGNVOTE_CHECK(std::isfinite(config.d0) && config.d0 > 0);
    SIGNVOTE_CHECK(std::isfinite(config.f_min));
    SIGNVOTE_CHECK(config.probe_every > 0);
  }

  std::string_view name() const override { return "alias"; }

  bool probes() const override { return true; }
  bool needs_x0() const override { return false; }

  std::vector<ScalarKind> Wanted(const RoundAhead& ahead) const override {
    std::vector<ScalarKind> wanted;
    if (ahead.main_rounds == 0) return wanted;  // there is no step behind it to learn from
    if (ProbeDue(ahead)) wanted.push_back(ScalarKind::kProbeL1);
    if (config_.option == AliasOption::kOptionI) wanted.push_back(ScalarKind::kPrevInner);
    return wanted;
  }

  StepsizeDecision Decide(const RuleInput& input) override {
    if (!f0_.has_value()) f0_ = MeanLoss(input);
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

  std::string Save() const override {
    RuleStateWriter writer(name(), kStateVersion);
    writer.Add(uint64_t{started_ ? 1u : 0u});
    writer.Add(double{gamma_});
    writer.Add(eta_);
    writer.Add(a_);
    writer.Add(d_);
    writer.Add(uint64_t{f0_.has_value() ? 1u : 0u});
    writer.Add(f0_.value_or(0));
    return writer.Take();
  }

  absl::Status Restore(std::string_view bytes) override {
    RuleStateReader reader(bytes, name(), kStateVersion);
    const uint64_t started = reader.U64();
    const double gamma = reader.Double();
    const double eta = reader.Double();
    const double a = reader.Double();
    const double d = reader.Double();
    const uint64_t has_f0 = reader.U64();
    const double f0 = reader.Double();
    if (absl::Status status = reader.Finish(); !status.ok()) return status;
    const bool gamma_fits = started == 1 ? IsStepsize(gamma) : gamma == 0;
    if (started > 1 || has_f0 > 1 || !gamma_fits || !std::isfinite(eta) || eta < 0 ||
        !std::isfinite(a) || !std::isfinite(d) || d < config_.d0 || !std::isfinite(f0)) {
      return absl::DataLossError(
          "the saved state of stepsize rule 'alias' has values that this run's flags cannot give; "
          "start the server with the flags that it was started with before");
    }
    started_ = started == 1;
    gamma_ = static_cast<float>(gamma);
    eta_ = eta;
    a_ = a;
    d_ = d;
    f0_ = has_f0 == 1 ? std::optional(f0) : std::nullopt;
    return absl::OkStatus();
  }

 private:
  // A positive fp32 number.
  static bool IsStepsize(double gamma) {
    return gamma > 0 && gamma <= double{std::numeric_limits<float>::max()} &&
           double{static_cast<float>(gamma)} == gamma;
  }

  bool ProbeDue(const RoundAhead& ahead) const {
    return ahead.main_rounds >= 1 && (ahead.main_rounds - 1) % config_.probe_every == 0;
  }

  static std::optional<double> MeanLoss(const RuleInput& input) {
    std::vector<double> values;
    values.reserve(input.workers.size());
    for (const WorkerScalars& worker : input.workers) values.push_back(worker.loss);
    return RobustMean(values);
  }

  static std::optional<double> MeanOf(const RuleInput& input, ScalarKind kind) {
    std::vector<double> values;
    values.reserve(input.workers.size());
    for (const WorkerScalars& worker : input.workers) {
      if (const std::optional<double> value = ScalarOf(worker, input.asked, kind)) {
        values.push_back(*value);
      }
    }
    return RobustMean(values);
  }

  void Accumulate(const RuleInput& input) {
    const double gamma = gamma_;
    if (ProbeDue(input.ahead)) {
      const std::optional<double> probe = MeanOf(input, ScalarKind::kProbeL1);
      if (probe.has_value() && *probe >= 0) {
        const double eta = eta_ + static_cast<double>(config_.probe_every) *
                                      (*probe / (gamma * input.step_scale_max));
        if (std::isfinite(eta)) eta_ = eta;
      }
    }
    if (config_.option == AliasOption::kOptionI) {
      const std::optional<double> inner = MeanOf(input, ScalarKind::kPrevInner);
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
