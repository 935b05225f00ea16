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
    if (std::isfinite(loss)) entries_.push_back({step, ShareOf(input, i), loss});
  }
  std::sort(entries_.begin() + first, entries_.end(),
            [](const Entry& a, const Entry& b) { return a.share < b.share; });
}

std::optional<double> TrialLosses::Mean() const {
  double sum = 0;
  uint64_t steps = 0;
  std::vector<double> of_step;
  for (size_t i = 0; i < entries_.size(); ++i) {
    of_step.push_back(entries_[i].loss);
    if (i + 1 < entries_.size() && entries_[i + 1].step == entries_[i].step) continue;
    if (const std::optional<double> mean = RobustMean(of_step)) {
      sum += *mean;
      ++steps;
    }
    of_step.clear();
  }
  const double mean =
      steps == 0 ? std::numeric_limits<double>::quiet_NaN() : sum / static_cast<double>(steps);
  return std::isfinite(mean) ? std::optional(mean) : std::nullopt;
}

std::optional<LossDifference> TrialLosses::Above(const TrialLosses& other,
                                                 uint64_t first_step) const {
  std::vector<double> by_step, of_step;
  uint64_t step = 0;
  const auto close_step = [&] {
    if (const std::optional<double> mean = RobustMean(of_step)) by_step.push_back(*mean);
    of_step.clear();
  };
  auto theirs = other.entries_.begin();
  for (const Entry& mine : entries_) {
    if (mine.step < first_step) continue;
    if (mine.step != step) close_step();
    step = mine.step;
    const auto key = std::tuple(mine.step, mine.share);
    while (theirs != other.entries_.end() && std::tuple(theirs->step, theirs->share) < key)
      ++theirs;
    if (theirs == other.entries_.end()) break;
    if (std::tuple(theirs->step, theirs->share) == key) of_step.push_back(mine.loss - theirs->loss);
  }
  close_step();
  if (by_step.empty()) return std::nullopt;
  const double n = static_cast<double>(by_step.size());
  LossDifference difference{.steps = by_step.size()};
  for (const double d : by_step) difference.mean += d / n;
  if (!std::isfinite(difference.mean)) return std::nullopt;
  if (by_step.size() < 2) return difference;
  double squares = 0;
  for (const double d : by_step) squares += (d - difference.mean) * (d - difference.mean);
  difference.standard_error = std::sqrt(squares / (n - 1) / n);
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
