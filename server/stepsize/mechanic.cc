#include "server/stepsize/mechanic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/status.h"
#include "server/stepsize/first_step.h"
#include "server/stepsize/robust_mean.h"
#include "server/stepsize/rule_state.h"
#include "server/stepsize/x0_reports.h"

namespace signvote {
namespace {

constexpr uint32_t kStateVersion = 1;
constexpr size_t kBets = 6;
constexpr double kEpsilon = 1e-8;
// S stays a stepsize, and S_{t+1}/S_t a positive fp32 number, whatever is bet.
constexpr double kScaleMin = kMechanicStartMin, kScaleMax = kMechanicStartMax;

// One forgetting rate.
struct Bet {
  double r = 0, m = 0, v = 0, s = 0;
};

class MechanicRule final : public StepsizeRule {
 public:
  explicit MechanicRule(const MechanicConfig& config) : config_(config) {
    SIGNVOTE_CHECK(config.start == 0 ||
                   (config.start >= kMechanicStartMin && config.start <= kMechanicStartMax));
  }

  std::string_view name() const override { return "mechanic"; }
  bool probes() const override { return false; }
  bool needs_x0() const override { return true; }
  std::vector<ScalarKind> Wanted(const RoundAhead& ahead) const override {
    if (ahead.main_rounds == 0) return {};  // x is x_0
    return X0ReportScalars();
  }

  StepsizeDecision Decide(const RuleInput& input) override {
    const double before = scale_;
    std::optional<double> inner;
    if (scale_ == 0) {
      start_ = config_.start > 0 ? config_.start : double{FirstStepsize(input.x0_max_abs)};
      start_ = std::clamp(start_, kScaleMin, kScaleMax);
      scale_ = start_;
      bets_.fill({.m = kEpsilon, .s = start_ / kBets});  // what the formula gives for h = 0
    } else {
      std::vector<double> inners;
      for (const X0Report& report : X0Reports(input)) inners.push_back(report.inner);
      inner = RobustMean(inners);
    }
    if (inner.has_value()) BetOn(*inner / scale_);
    const double factor =
        ScheduleFactor(config_.schedule, input.ahead.main_rounds, input.main_rounds_max);
    StepsizeDecision decision;
    decision.gamma = static_cast<float>(scale_ * factor);
    if (before > 0) decision.rho = static_cast<float>(scale_ / before);
    decision.reason = absl::StrFormat("mechanic: s=%.6g%s", scale_,
                                      inner.has_value() || before == 0 ? "" : " kept");
    decision.state = {{"s", scale_}, {"rho", double{decision.rho}}};
    return decision;
  }

  std::string Save() const override {
    RuleStateWriter writer(name(), kStateVersion);
    writer.Add(start_);
    writer.Add(scale_);
    for (const Bet& bet : bets_) {
      for (const double value : {bet.r, bet.m, bet.v, bet.s}) writer.Add(value);
    }
    return writer.Take();
  }

  absl::Status Restore(std::string_view bytes) override {
    RuleStateReader reader(bytes, name(), kStateVersion);
    const double start = reader.Double(), scale = reader.Double();
    std::array<Bet, kBets> bets;
    bool fits = (scale == 0 ? start == 0 : start >= kScaleMin && start <= kScaleMax) &&
                (scale == 0 || (scale >= kScaleMin && scale <= kScaleMax));
    for (Bet& bet : bets) {
      bet = {
          .r = reader.Double(), .m = reader.Double(), .v = reader.Double(), .s = reader.Double()};
      fits = fits && std::isfinite(bet.r) && std::isfinite(bet.m) && bet.m >= 0 &&
             std::isfinite(bet.v) && bet.v >= 0 && std::isfinite(bet.s) && bet.s >= 0;
    }
    SIGNVOTE_RETURN_IF_ERROR(reader.Finish());
    if (!fits) {
      return absl::DataLossError(
          "the saved state of stepsize rule 'mechanic' has values that none can have; restore an "
          "older "
          "state of the run");
    }
    start_ = start;
    scale_ = scale;
    bets_ = bets;
    return absl::OkStatus();
  }

 private:
  void BetOn(double h) {
    if (!std::isfinite(h)) return;
    std::array<Bet, kBets> bets = bets_;
    double total = 0, beta = 0;
    for (Bet& bet : bets) {
      beta = 1 - 0.1 * (1 - beta);
      bet.r = beta * bet.r + std::clamp(h, -bet.m, bet.m) * bet.s;
      bet.m = std::max(beta * bet.m, std::abs(h) + kEpsilon);
      bet.v = beta * beta * bet.v + h * h;
      bet.s = (start_ / kBets * bet.m + std::max(0.0, bet.r)) / (std::sqrt(bet.v) + kEpsilon);
      total += bet.s + 0 * (bet.r + bet.v);  // not finite where one of them is not
    }
    if (!std::isfinite(total)) return;
    bets_ = bets;
    scale_ = std::clamp(total, kScaleMin, kScaleMax);
  }

  const MechanicConfig config_;
  double start_ = 0;  // 0: no round was decided
  double scale_ = 0;  // S
  std::array<Bet, kBets> bets_;
};

}  // namespace

std::unique_ptr<StepsizeRule> MakeMechanicRule(const MechanicConfig& config) {
  return std::make_unique<MechanicRule>(config);
}

}  // namespace signvote
