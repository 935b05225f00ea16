#include "server/stepsize/trial_losses.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "common/check.h"
#include "server/stepsize/robust_mean.h"

namespace signvote {
namespace {

constexpr size_t kFieldsPerEntry = 3;

}  // namespace

void TrialLosses::Add(uint64_t step, const RuleInput& input) {
  SIGNVOTE_CHECK(entries_.empty() || entries_.back().step < step);
  const auto first = static_cast<ptrdiff_t>(entries_.size());
  for (size_t i = 0; i < input.workers.size(); ++i) {
    const double loss = input.workers[i].loss;
    // A mean over fewer minibatches, on a shorter way, is none to compare with.
    const uint32_t taken = input.workers[i].local_steps;
    if (input.local.is_silent() && taken > 0 && taken < input.local.steps) continue;
    if (std::isfinite(loss)) entries_.push_back({step, ShareOf(input, i), loss});
  }
  std::sort(entries_.begin() + first, entries_.end(),
            [](const Entry& a, const Entry& b) { return a.share < b.share; });
}

std::span<const TrialLosses::Entry> TrialLosses::At(uint64_t step) const {
  const auto before = [](const Entry& entry, uint64_t at) { return entry.step < at; };
  const auto behind = [](uint64_t at, const Entry& entry) { return at < entry.step; };
  const auto first = std::lower_bound(entries_.begin(), entries_.end(), step, before);
  return {first, std::upper_bound(first, entries_.end(), step, behind)};
}

std::optional<LossMean> TrialLosses::Mean(uint64_t first_step, uint64_t end_step) const {
  LossMean result;
  std::vector<double> of_step;
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].step < first_step || entries_[i].step >= end_step) continue;
    of_step.push_back(entries_[i].loss);
    if (i + 1 < entries_.size() && entries_[i + 1].step == entries_[i].step) continue;
    if (const std::optional<double> mean = RobustMean(of_step)) {
      result.mean += *mean;
      ++result.steps;
    }
    of_step.clear();
  }
  if (result.steps == 0) return std::nullopt;
  result.mean /= static_cast<double>(result.steps);
  return std::isfinite(result.mean) ? std::optional(result) : std::nullopt;
}

std::optional<double> TrialLosses::AboveAt(const TrialLosses& other, uint64_t step) const {
  std::vector<double> pairs;
  const std::span<const Entry> others = other.At(step);
  auto theirs = others.begin();
  for (const Entry& mine : At(step)) {
    while (theirs != others.end() && theirs->share < mine.share) ++theirs;
    if (theirs == others.end()) break;
    if (theirs->share == mine.share) pairs.push_back(mine.loss - theirs->loss);
  }
  return RobustMean(pairs);
}

std::optional<LossDifference> TrialLosses::Above(const TrialLosses& other,
                                                 uint64_t first_step) const {
  DifferenceSums sums;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const uint64_t step = entries_[i].step;
    if (step < first_step || (i > 0 && entries_[i - 1].step == step)) continue;
    if (const std::optional<double> above = AboveAt(other, step)) sums.Add(step, *above);
  }
  return sums.Get();
}

void DifferenceSums::Add(uint64_t step, double above) {
  ++steps_;
  step_sum_ += static_cast<double>(step);
  const double from_mean = above - mean_;
  mean_ += from_mean / static_cast<double>(steps_);
  squares_ += from_mean * (above - mean_);
}

std::optional<LossDifference> DifferenceSums::Get() const {
  if (steps_ == 0 || !std::isfinite(mean_)) return std::nullopt;
  const double n = static_cast<double>(steps_);
  LossDifference difference{.mean = mean_, .mean_step = step_sum_ / n, .steps = steps_};
  if (steps_ > 1) difference.standard_error = std::sqrt(squares_ / (n - 1) / n);
  return difference;
}

void TrialLosses::Save(RuleStateWriter& writer) const {
  writer.Add(uint64_t{entries_.size()});
  for (const Entry& entry : entries_) {
    writer.Add(entry.step);
    writer.Add(uint64_t{entry.share.value()});
    writer.Add(entry.loss);
  }
}

absl::Status TrialLosses::Restore(RuleStateReader& reader) {
  std::vector<Entry> entries(reader.Count(kFieldsPerEntry));
  for (Entry& entry : entries) {
    entry.step = reader.U64();
    const uint64_t share = reader.U64();
    entry.loss = reader.Double();
    if (share > std::numeric_limits<uint32_t>::max() || !std::isfinite(entry.loss))
      return absl::DataLossError("a trial has a loss that no worker can have sent");
    entry.share = Share(static_cast<uint32_t>(share));
  }
  for (size_t i = 1; i < entries.size(); ++i) {
    if (std::tuple(entries[i - 1].step, entries[i - 1].share) >=
        std::tuple(entries[i].step, entries[i].share)) {
      return absl::DataLossError("a trial's losses are not in their order");
    }
  }
  entries_ = std::move(entries);
  return absl::OkStatus();
}

}  // namespace signvote
