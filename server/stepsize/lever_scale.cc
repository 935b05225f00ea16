#include "server/stepsize/lever_scale.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/check.h"
#include "server/stepsize/robust_mean.h"
#include "server/stepsize/x0_reports.h"

namespace signvote {
namespace {

constexpr double kKept = 0.97;
constexpr double kLeanMax = 2;
constexpr double kRoundMax = 0.3;   // of L, in a round with local steps
constexpr double kRounding = 1e-3;  // of sums that workers form
// s stays a stepsize whatever leans: within [1e-30, 1e30].
const double kLogScaleMax = std::log(1e30);

}  // namespace

std::optional<Lean> MeasureLean(const RuleInput& input) {
  std::vector<RatioPart> parts;
  for (const X0Report& report : X0Reports(input)) {
    if (report.distance <= 0 || report.norm_l2 <= 0) continue;
    parts.push_back({.numerator = report.inner / report.distance, .weight = report.norm_l2});
  }
  const std::optional<double> z = RobustRatio(parts);
  if (!z.has_value()) return std::nullopt;
  return Lean{.z = std::clamp(*z, -1.0, 1.0), .workers = static_cast<uint32_t>(parts.size())};
}

std::optional<Lean> MeasureLocalLean(const RuleInput& input) {
  std::vector<RatioPart> parts;
  for (const WorkerScalars& worker : input.workers) {
    const std::optional<double> inner = ScalarOf(worker, input.asked, ScalarKind::kLocalInner);
    const std::optional<double> product = ScalarOf(worker, input.asked, ScalarKind::kLocalProduct);
    if (!inner.has_value() || !product.has_value() || !(*product > 0)) continue;
    if (!(std::abs(*inner) <= *product * (1 + kRounding))) continue;
    parts.push_back({.numerator = *inner, .weight = *product});
  }
  const std::optional<double> z = RobustRatio(parts);
  if (!z.has_value()) return std::nullopt;
  return Lean{.z = std::clamp(*z, -1.0, 1.0), .workers = static_cast<uint32_t>(parts.size())};
}

LeverScale::LeverScale(double scale)
    : log_scale_(std::clamp(std::log(scale), -kLogScaleMax, kLogScaleMax)) {
  SIGNVOTE_CHECK(std::isfinite(log_scale_));
}

double LeverScale::s() const { return std::exp(log_scale_); }

double LeverScale::Take(const Lean& lean) {
  ++updates_;
  v_ = kKept * v_ + (1 - kKept) * lean.z * lean.z;
  const double mean_square = v_ / (1 - std::pow(kKept, static_cast<double>(updates_)));
  if (!(mean_square > 0)) return 0;
  return std::clamp(lean.z / std::sqrt(mean_square), -kLeanMax, kLeanMax);
}

void LeverScale::Add(double way) {
  log_scale_ = std::clamp(log_scale_ + way, -kLogScaleMax, kLogScaleMax);
}

void LeverScale::Move(const Lean& lean, uint64_t t, double gain_max, double up) {
  const double way = Take(lean);
  const double gain = std::min(gain_max, static_cast<double>(lean.workers)) * (lean.z > 0 ? up : 1);
  Add(gain / (static_cast<double>(t) + 1) * way);
}

void LeverScale::MoveOver(const Lean& lean, uint64_t t, uint64_t t_end, double gain) {
  const double way = Take(lean);
  const double part = std::log((static_cast<double>(t_end) + 1) / (static_cast<double>(t) + 1));
  Add(std::clamp(gain * part * way, -kRoundMax, kRoundMax));
}

void LeverScale::Save(RuleStateWriter& writer) const {
  writer.Add(log_scale_);
  writer.Add(v_);
  writer.Add(updates_);
}

absl::Status LeverScale::Restore(RuleStateReader& reader) {
  const double log_scale = reader.Double(), v = reader.Double();
  const uint64_t updates = reader.U64();
  // |z| ≤ 1, so v is a mean of numbers up to 1; rounding may take it a little above.
  const bool fits = std::abs(log_scale) <= kLogScaleMax && std::isfinite(v) && v >= 0 &&
                    v < 1.001 && (updates > 0 || v == 0);
  if (!fits) return absl::DataLossError("the saved scale has values that none can have");
  log_scale_ = log_scale;
  v_ = v;
  updates_ = updates;
  return absl::OkStatus();
}

}  // namespace signvote
