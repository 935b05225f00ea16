#include "server/stepsize/prodigy.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/status.h"
#include "server/stepsize/first_step.h"
#include "server/stepsize/input_means.h"
#include "server/stepsize/robust_mean.h"
#include "server/stepsize/rule_state.h"
#include "server/stepsize/x0_reports.h"

namespace signvote {
namespace {

constexpr uint32_t kStateVersion = 1;
const double kBeta3 = std::sqrt(0.999);
// Beyond this a stepsize is no fp32 number any more.
constexpr double kDistanceMax = 1e30;

class ProdigyRule final : public StepsizeRule {
 public:
  explicit ProdigyRule(const ProdigyConfig& config) : config_(config) {
    SIGNVOTE_CHECK(config.d0 == 0 ||
                   IsStepsize(static_cast<double>(static_cast<float>(config.d0))));
  }

  std::string_view name() const override { return "prodigy"; }
  bool probes() const override { return false; }
  bool needs_x0() const override { return true; }
  std::vector<ScalarKind> Wanted(const RoundAhead& ahead) const override {
    if (ahead.main_rounds == 0) return {};  // x is x_0
    return X0ReportScalars();
  }

  StepsizeDecision Decide(const RuleInput& input) override {
    if (d_ == 0) {
      d0_ = d_ = config_.d0 > 0 ? config_.d0 : double{FirstStepsize(input.x0_max_abs)};
    }
    const double factor =
        ScheduleFactor(config_.schedule, input.ahead.main_rounds, input.main_rounds_max);
    const bool grew = Estimate(input, factor);
    StepsizeDecision decision;
    decision.gamma = static_cast<float>(d_ * factor);
    decision.reason = absl::StrFormat("prodigy: d=%.6g%s", d_, grew ? "" : " kept");
    decision.state = {{"d", d_}, {"d_numerator", a_}, {"d_denominator", b_}};
    return decision;
  }

  std::string Save() const override {
    RuleStateWriter writer(name(), kStateVersion);
    for (const double value : {d0_, d_, a_, b_}) writer.Add(value);
    return writer.Take();
  }

  absl::Status Restore(std::string_view bytes) override {
    RuleStateReader reader(bytes, name(), kStateVersion);
    const double d0 = reader.Double(), d = reader.Double(), a = reader.Double(),
                 b = reader.Double();
    SIGNVOTE_RETURN_IF_ERROR(reader.Finish());
    const bool d_fits = std::isfinite(d) && std::isfinite(d0) && d0 >= 0 && d >= d0 &&
                        d <= kDistanceMax && (d0 > 0) == (d > 0) &&
                        (config_.d0 == 0 || d0 == 0 || d0 == config_.d0);
    if (!d_fits || !std::isfinite(a) || !std::isfinite(b) || b < 0) {
      return absl::DataLossError(
          "the saved state of stepsize rule 'prodigy' has values that this run's flags cannot "
          "give; "
          "start the server with the flags that it was started with before");
    }
    d0_ = d0;
    d_ = d;
    a_ = a;
    b_ = b;
    return absl::OkStatus();
  }

 private:
  bool Estimate(const RuleInput& input, double factor) {
    std::optional<double> inner, norm;
    if (input.ahead.main_rounds == 0) {
      inner = 0;
      norm = MeanL1(input);
    } else {
      std::vector<double> inners, norms;
      for (const X0Report& report : X0Reports(input)) {
        inners.push_back(report.inner);
        norms.push_back(report.norm_l1);
      }
      inner = RobustMean(inners);
      norm = RobustMean(norms);
    }
    if (!inner.has_value() || !norm.has_value() || *norm < 0) return false;
    const double weight = d_ / d0_ * d_ * factor;
    const double a = kBeta3 * a_ + weight * *inner, b = kBeta3 * b_ + weight * *norm;
    if (!std::isfinite(a) || !std::isfinite(b)) return false;
    a_ = a;
    b_ = b;
    if (b_ <= 0 || !(a_ / b_ > d_)) return false;
    d_ = std::min(a_ / b_, kDistanceMax);
    return true;
  }

  const ProdigyConfig config_;
  double d0_ = 0;  // 0: no round was decided
  double d_ = 0;
  double a_ = 0, b_ = 0;
};

}  // namespace

std::unique_ptr<StepsizeRule> MakeProdigyRule(const ProdigyConfig& config) {
  return std::make_unique<ProdigyRule>(config);
}

}  // namespace signvote
