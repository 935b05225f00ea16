#include "server/stepsize/alias_curvature.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/check.h"
#include "server/stepsize/robust_mean.h"

namespace signvote {
namespace {

constexpr size_t kFieldsPerShare = 4;

}  // namespace

AliasCurvature::AliasCurvature(const AliasCurvatureConfig& config) : config_(config) {
  SIGNVOTE_CHECK(config.probe_every > 0 && (config.probe_every == 1 || needs_h()));
  SIGNVOTE_CHECK(std::isfinite(config.extrema_scale) && config.extrema_scale > 0);
}

bool AliasCurvature::needs_h() const {
  return config_.form == AliasForm::kSame || config_.form == AliasForm::kDirectional;
}

std::vector<ScalarKind> AliasCurvature::Wanted() const {
  switch (config_.form) {
    case AliasForm::kSame:
      return {ScalarKind::kProbeL1};
    case AliasForm::kPrevious:
      return {ScalarKind::kChangeL1};
    case AliasForm::kDirectional:
      return {ScalarKind::kProbeInner};
    case AliasForm::kExtrema:
      break;
  }
  return {ScalarKind::kGradientMax, ScalarKind::kGradientMin};
}

bool AliasCurvature::AskedForH(uint64_t t, Share share) const {
  return (t - 1) % config_.probe_every == share.value() % config_.probe_every;
}

// γ·s, in which ‖x_t − x_{t−1}‖_∞ is measured.
double AliasCurvature::Unit(const RuleInput& input, float gamma) const {
  const double unit = double{gamma} * input.step_scale_max;
  return config_.form == AliasForm::kDirectional ? unit * input.step_scale_max : unit;
}

std::optional<double> AliasCurvature::OfWorker(const RuleInput& input, size_t i) const {
  if (needs_h() && !AskedForH(input.ahead.main_rounds, ShareOf(input, i))) return std::nullopt;
  const WorkerScalars& worker = input.workers[i];
  const auto told = [&](ScalarKind kind) { return ScalarOf(worker, input.asked, kind); };
  if (config_.form == AliasForm::kDirectional) {
    const std::optional<double> before = told(ScalarKind::kProbeInner);
    const std::optional<double> after = told(ScalarKind::kPrevInner);
    if (!before.has_value() || !after.has_value()) return std::nullopt;
    return *before - *after;
  }
  const std::optional<double> change = told(Wanted().front());
  if (!change.has_value() || *change < 0) return std::nullopt;
  return change;
}

std::optional<double> AliasCurvature::Measure(const RuleInput& input, float gamma) {
  if (config_.form == AliasForm::kExtrema) return OfExtrema(input, gamma);
  std::optional<double> mean;
  if (config_.probe_every > 1) {
    mean = OfTurns(input, gamma);
  } else {
    std::vector<double> values;
    for (size_t i = 0; i < input.workers.size(); ++i) {
      if (const auto value = OfWorker(input, i)) values.push_back(*value);
    }
    mean = RobustMean(values);
    if (mean.has_value()) *mean /= Unit(input, gamma);
  }
  if (mean.has_value() && config_.form == AliasForm::kDirectional) return std::max(0.0, *mean);
  return mean;
}

std::optional<double> AliasCurvature::OfTurns(const RuleInput& input, float gamma) {
  bool told = false;
  for (size_t i = 0; i < input.workers.size(); ++i) {
    const std::optional<double> value = OfWorker(input, i);
    const double change = value.value_or(0) / Unit(input, gamma);
    if (!value.has_value() || !std::isfinite(change)) continue;
    seen_[ShareOf(input, i)] = {.at = input.ahead.main_rounds, .first = change};
    told = true;
  }
  std::erase_if(seen_, [&](const auto& entry) {
    return entry.second.at + config_.probe_every <= input.ahead.main_rounds;
  });
  if (!told) return std::nullopt;
  std::vector<double> values;
  for (const auto& [share, seen] : seen_) values.push_back(seen.first);
  return RobustMean(values);
}

std::optional<double> AliasCurvature::OfExtrema(const RuleInput& input, float gamma) {
  std::vector<double> values;
  for (size_t i = 0; i < input.workers.size(); ++i) {
    const auto before = seen_.find(ShareOf(input, i));
    const auto most = ScalarOf(input.workers[i], input.asked, ScalarKind::kGradientMax);
    const auto least = ScalarOf(input.workers[i], input.asked, ScalarKind::kGradientMin);
    if (before == seen_.end() || !most.has_value() || !least.has_value()) continue;
    if (before->second.at + 1 != input.ahead.round.value()) continue;
    values.push_back(
        std::max(std::abs(*most - before->second.second), std::abs(before->second.first - *least)));
  }
  KeepExtrema(input);
  const std::optional<double> mean = RobustMean(values);
  if (!mean.has_value() || input.coordinates == 0) return std::nullopt;
  return config_.extrema_scale * *mean /
         (static_cast<double>(input.coordinates) * double{gamma} * input.step_scale_max);
}

void AliasCurvature::Begin(const RuleInput& input) {
  if (config_.form == AliasForm::kExtrema) KeepExtrema(input);
}

void AliasCurvature::KeepExtrema(const RuleInput& input) {
  seen_.clear();
  for (size_t i = 0; i < input.workers.size(); ++i) {
    const auto most = ScalarOf(input.workers[i], input.asked, ScalarKind::kGradientMax);
    const auto least = ScalarOf(input.workers[i], input.asked, ScalarKind::kGradientMin);
    if (!most.has_value() || !least.has_value()) continue;
    if (!std::isfinite(*most) || !std::isfinite(*least)) continue;
    seen_[ShareOf(input, i)] = {.at = input.ahead.round.value(), .first = *most, .second = *least};
  }
}

void AliasCurvature::Save(RuleStateWriter& writer) const {
  writer.Add(uint64_t{seen_.size()});
  for (const auto& [share, seen] : seen_) {
    writer.Add(uint64_t{share.value()});
    writer.Add(seen.at);
    writer.Add(seen.first);
    writer.Add(seen.second);
  }
}

absl::Status AliasCurvature::Restore(RuleStateReader& reader) {
  std::map<Share, Seen> seen;
  bool fits = true;
  for (size_t count = reader.Count(kFieldsPerShare); count > 0; --count) {
    const uint64_t share = reader.U64();
    const Seen of_share{.at = reader.U64(), .first = reader.Double(), .second = reader.Double()};
    fits = fits && share <= std::numeric_limits<uint32_t>::max() && std::isfinite(of_share.first) &&
           std::isfinite(of_share.second);
    fits = fits && seen.emplace(Share(static_cast<uint32_t>(share)), of_share).second;
  }
  const bool keeps = config_.form == AliasForm::kExtrema || config_.probe_every > 1;
  if (!fits || (!keeps && !seen.empty()))
    return absl::DataLossError("the saved curvature has values that no run can give");
  seen_ = std::move(seen);
  return absl::OkStatus();
}

}  // namespace signvote
