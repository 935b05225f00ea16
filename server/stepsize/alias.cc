#include "server/stepsize/alias.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "server/stepsize/first_step.h"
#include "server/stepsize/input_means.h"
#include "server/stepsize/rule_state.h"

namespace signvote {
namespace {

// One minibatch tells neither the loss nor the curvature of a model that is trained already: its first
// probe alone took γ from 1e-5 to 1.2e-3, and the model was lost. Eight bring the error of both down to
// about a third, …
constexpr uint64_t kStartRoundsMax = 8;
// … and cost at most a twentieth of a run: at γ_0 nothing is learnt.
constexpr uint64_t kStartPartOfRun = 20;
// Whoever has just joined lacks x_{t−1}, and a gradient may for once not be finite: no such reason holds
// for so many steps in a row.
constexpr uint64_t kProbelessSteps = 8;
// Nor for so many of the rounds that want a probe, where these are further apart.
constexpr uint64_t kProbelessTimes = 2;

constexpr char kUnknownStart[] =
    "the initial parameters do not say at which stepsize they were trained, so that ALIAS begins "
    "as with an untrained model, and its first steps may spoil a trained one: give --alias-eta0, "
    "(loss - f-min)/stepsize^2 for the stepsize to begin with, or --rule fixed; --alias-eta0 0 "
    "says that it is meant so";

constexpr uint32_t kStateVersion = 4;

uint64_t StartRounds(uint64_t main_rounds_max) {
  if (main_rounds_max == 0) return kStartRoundsMax;
  return std::clamp(main_rounds_max / kStartPartOfRun, uint64_t{1}, kStartRoundsMax);
}

class AliasRule final : public StepsizeRule {
 public:
  explicit AliasRule(const AliasConfig& config)
      : config_(config),
        curvature_({.form = config.form,
                    .probe_every = config.probe_every,
                    .extrema_scale = config.extrema_scale}),
        eta_(config.eta0),
        d_(config.d0),
        resumed_(config.resumed_stepsize) {
    SIGNVOTE_CHECK(std::isfinite(config.d0) && config.d0 > 0);
    SIGNVOTE_CHECK(std::isfinite(config.f_min));
    SIGNVOTE_CHECK(std::isfinite(config.eta0) && config.eta0 >= 0);
    SIGNVOTE_CHECK(config.resumed_stepsize == 0 || IsStepsize(double{config.resumed_stepsize}));
  }

  std::string_view name() const override { return "alias"; }

  bool probes() const override { return curvature_.needs_h(); }
  bool keeps_gradients() const override { return config_.form == AliasForm::kPrevious; }
  bool needs_x0() const override { return false; }

  std::vector<ScalarKind> Wanted(const RoundAhead& ahead) const override {
    std::vector<ScalarKind> wanted;
    if (ahead.main_rounds == 0) {
      // There is no step behind it to learn from; the next one is measured from here.
      if (config_.form == AliasForm::kExtrema) return curvature_.Wanted();
      return wanted;
    }
    if (WantsInner()) wanted.push_back(ScalarKind::kPrevInner);
    for (const ScalarKind kind : curvature_.Wanted()) wanted.push_back(kind);
    return wanted;
  }

  size_t WantedOf(const RoundAhead& ahead, Share share, size_t wanted) const override {
    if (!curvature_.needs_h() || wanted == 0) return wanted;
    return curvature_.AskedForH(ahead.main_rounds, share) ? wanted : wanted - 1;
  }

  StepsizeDecision Decide(const RuleInput& input) override {
    MeasureStart(input);
    if (!started_) {
      started_ = true;
      curvature_.Begin(input);
      gamma_ = FirstStepsize(input.x0_max_abs);
      return Decision("alias: first step");
    }
    Accumulate(input);
    if (input.workers.empty()) return Decision("alias: no scalars: kept");
    return Next(input);
  }

  std::string Save() const override {
    RuleStateWriter writer(name(), kStateVersion);
    writer.Add(uint64_t{started_ ? 1u : 0u});
    writer.Add(double{gamma_});
    writer.Add(eta_);
    writer.Add(a_);
    writer.Add(d_);
    writer.Add(steps_since_probe_);
    writer.Add(losses_);
    writer.Add(loss_sum_);
    writer.Add(uint64_t{measured_ ? 1u : 0u});
    writer.Add(double{resumed_});
    curvature_.Save(writer);
    return writer.Take();
  }

  absl::Status Restore(std::string_view bytes) override {
    RuleStateReader reader(bytes, name(), kStateVersion);
    const uint64_t started = reader.U64();
    const double gamma = reader.Double();
    const double eta = reader.Double();
    const double a = reader.Double();
    const double d = reader.Double();
    const uint64_t steps_since_probe = reader.U64();
    const uint64_t losses = reader.U64();
    const double loss_sum = reader.Double();
    const uint64_t measured = reader.U64();
    const double resumed = reader.Double();
    AliasCurvature curvature = curvature_;
    const absl::Status curvature_fits = curvature.Restore(reader);
    if (absl::Status status = reader.Finish(); !status.ok()) return status;
    const bool start_fits =
        started == 1 ? IsStepsize(gamma)
                     : started == 0 && gamma == 0 && steps_since_probe == 0 && losses == 0;
    const bool sums_fit = std::isfinite(eta) && eta >= config_.eta0 && std::isfinite(a) &&
                          std::isfinite(d) && d >= config_.d0;
    const bool loss_fits =
        losses == 0 ? loss_sum == 0 && measured == 0 : std::isfinite(loss_sum) && measured <= 1;
    const bool resumed_fits = resumed == 0 || (IsStepsize(resumed) && measured == 0);
    if (!start_fits || !sums_fit || !loss_fits || !resumed_fits || !curvature_fits.ok()) {
      return absl::DataLossError(
          "the saved state of stepsize rule 'alias' has values that this run's flags cannot give; "
          "start the server with the flags that it was started with before");
    }
    started_ = started == 1;
    gamma_ = static_cast<float>(gamma);
    eta_ = eta;
    a_ = a;
    d_ = d;
    steps_since_probe_ = steps_since_probe;
    losses_ = losses;
    loss_sum_ = loss_sum;
    measured_ = measured == 1;
    resumed_ = static_cast<float>(resumed);
    curvature_ = std::move(curvature);
    return absl::OkStatus();
  }

 private:
  bool WantsInner() const {
    return config_.option == AliasOption::kOptionI || config_.form == AliasForm::kDirectional;
  }

  static bool InStart(const RuleInput& input) {
    return input.ahead.main_rounds < StartRounds(input.main_rounds_max);
  }

  // f(x_0), and what of η_0 follows from it.
  void MeasureStart(const RuleInput& input) {
    if (measured_) return;
    if (InStart(input) || losses_ == 0) {
      const std::optional<double> loss = MeanLoss(input);
      if (loss.has_value() && std::isfinite(loss_sum_ + *loss)) {
        loss_sum_ += *loss;
        ++losses_;
      }
    }
    if (InStart(input) || losses_ == 0) return;
    measured_ = true;
    const double resumed = resumed_;
    resumed_ = 0;
    if (resumed == 0 || Gap() <= 0) return;
    const double eta = eta_ + Gap() / (resumed * resumed);
    if (std::isfinite(eta)) eta_ = eta;
  }

  void Accumulate(const RuleInput& input) {
    const double gamma = gamma_;
    ++steps_since_probe_;
    if (const std::optional<double> change = curvature_.Measure(input, gamma_)) {
      const double eta = eta_ + static_cast<double>(steps_since_probe_) * *change;
      if (std::isfinite(eta)) {
        eta_ = eta;
        steps_since_probe_ = 0;
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

  StepsizeDecision Next(const RuleInput& input) {
    if (InStart(input)) return Decision("alias: f(x0) is measured: kept");
    if (!measured_) return Decision("alias: f(x0) unknown: kept");
    if (eta_ <= 0) return Decision("alias: eta=0: kept");
    const double num = Numerator();
    if (num <= 0) {
      return Decision(absl::StrFormat("alias: num=%.6g is not positive: kept", num));
    }
    const float gamma = static_cast<float>(std::sqrt(num / eta_));
    if (!std::isfinite(gamma) || gamma <= 0) {
      return Decision(
          absl::StrFormat("alias: eta=%.6g num=%.6g give no fp32 stepsize: kept", eta_, num));
    }
    gamma_ = gamma;
    return Decision(absl::StrFormat("alias: eta=%.6g num=%.6g", eta_, num));
  }

  // So far, while the start lasts. 0: no loss is known.
  double StartLoss() const { return losses_ == 0 ? 0 : loss_sum_ / static_cast<double>(losses_); }
  double Gap() const { return losses_ == 0 ? 0 : StartLoss() - config_.f_min; }
  double Numerator() const { return config_.option == AliasOption::kOptionI ? d_ : Gap(); }

  std::string Warning() const {
    // With η = 0 nothing moves γ_0 until a probe comes.
    const uint64_t patience = eta_ > 0
                                  ? std::max(kProbelessSteps, kProbelessTimes * config_.probe_every)
                                  : kProbelessSteps;
    if (steps_since_probe_ >= patience) {
      return absl::StrFormat(
          "no worker's probe has come for %d rounds, and without probes ALIAS does not adapt the "
          "stepsize: let a worker join that probes, as signvote-worker does, or choose --rule "
          "fixed",
          patience);
    }
    if (measured_ && config_.option == AliasOption::kOptionII && Gap() <= 0) {
      return absl::StrFormat(
          "the loss at the start, %.6g, is not above its lower bound %.6g: ALIAS keeps the "
          "stepsize "
          "%.6g; give a smaller --alias-f-min",
          StartLoss(), config_.f_min, gamma_);
    }
    if (config_.unknown_start) return kUnknownStart;
    return "";
  }

  StepsizeDecision Decision(std::string reason) const {
    StepsizeDecision decision;
    decision.gamma = gamma_;
    decision.reason = std::move(reason);
    decision.warning = Warning();
    decision.state = {{"eta", eta_}, {"num", Numerator()}};
    if (config_.option == AliasOption::kOptionI) decision.state.emplace_back("a", a_);
    if (losses_ > 0) decision.state.emplace_back("f0", StartLoss());
    return decision;
  }

  const AliasConfig config_;
  AliasCurvature curvature_;
  bool started_ = false;
  float gamma_ = 0;  // the last committed stepsize
  double eta_;
  double a_ = 0;  // Option I: Σ γ_i⟨g_{i+1}, b_i⟩
  double d_;      // Option I: the largest a_ so far, at least d0
  uint64_t steps_since_probe_ = 0;
  uint64_t losses_ = 0;  // rounds of which loss_sum_ is the sum
  double loss_sum_ = 0;
  bool measured_ = false;  // f(x_0) is known, and η_0 is in eta_
  float resumed_;          // the stepsize whose part of η_0 is not in eta_ yet; 0: none
};

}  // namespace

std::unique_ptr<StepsizeRule> MakeAliasRule(const AliasConfig& config) {
  return std::make_unique<AliasRule>(config);
}

}  // namespace signvote
