#include "worker/train/held_out.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/status.h"
#include "worker/data/held_out_windows.h"
#include "worker/train/batch_view.h"

namespace signvote {
namespace {

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double StandardError(const std::vector<double>& values, double mean) {
  if (values.size() < 2) return 0;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const auto n = static_cast<double>(values.size());
  return std::sqrt(squares / (n - 1) / n);
}

}  // namespace

HeldOutEvaluation::HeldOutEvaluation(Model* model, const Dataset* dataset, Clock* clock,
                                     uint64_t rows_at_once)
    : model_(model),
      dataset_(dataset),
      clock_(clock),
      rows_at_once_(rows_at_once),
      windows_(dataset->held_out_windows()) {
  SIGNVOTE_CHECK(windows_ > 0 && rows_at_once_ > 0);
}

absl::Status HeldOutEvaluation::Begin(Round round, uint64_t slices) {
  SIGNVOTE_CHECK(slices > 0);
  const Time start = clock_->Now();
  SIGNVOTE_RETURN_IF_ERROR(model_->Keep(ReplicaSlot::kSnapshot));
  seconds_ += ToSeconds(clock_->Now() - start);
  losses_.clear();
  per_slice_ = (windows_ - 1) / slices + 1;
  round_ = round;
  running_ = true;
  return absl::OkStatus();
}

absl::Status HeldOutEvaluation::Measure(ReplicaSlot slot, uint64_t windows) {
  const Time start = clock_->Now();
  windows = std::min(windows, windows_ - losses_.size());
  while (windows > 0) {
    const uint64_t count = std::min(windows, rows_at_once_);
    SIGNVOTE_RETURN_IF_ERROR(dataset_->HeldOut(losses_.size(), count, &batch_));
    SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<double> losses,
                              model_->Evaluate(slot, ViewOf(batch_)));
    losses_.insert(losses_.end(), losses.begin(), losses.end());
    windows -= count;
  }
  seconds_ += ToSeconds(clock_->Now() - start);
  return absl::OkStatus();
}

absl::StatusOr<HeldOutLoss> HeldOutEvaluation::Result() {
  HeldOutLoss result{.round = round_, .loss = Mean(losses_)};
  result.error = StandardError(losses_, result.loss);
  if (batch_.length > 0) result.perplexity = std::exp(result.loss);
  SIGNVOTE_ASSIGN_OR_RETURN(result.windows, WindowsHash());
  return result;
}

absl::StatusOr<std::optional<HeldOutLoss>> HeldOutEvaluation::Slice() {
  SIGNVOTE_CHECK(running_);
  SIGNVOTE_RETURN_IF_ERROR(Measure(ReplicaSlot::kSnapshot, per_slice_));
  if (!done()) return std::optional<HeldOutLoss>();
  running_ = false;
  return Result();
}

absl::StatusOr<HeldOutLoss> HeldOutEvaluation::Finish() {
  SIGNVOTE_CHECK(running_);
  running_ = false;
  SIGNVOTE_RETURN_IF_ERROR(Measure(ReplicaSlot::kSnapshot, windows_));
  return Result();
}

absl::StatusOr<HeldOutLoss> HeldOutEvaluation::Now(Round round) {
  running_ = false;
  round_ = round;
  losses_.clear();
  SIGNVOTE_RETURN_IF_ERROR(Measure(ReplicaSlot::kCurrent, windows_));
  return Result();
}

absl::StatusOr<uint64_t> HeldOutEvaluation::WindowsHash() {
  if (!windows_hash_.has_value()) {
    SIGNVOTE_ASSIGN_OR_RETURN(windows_hash_, HashOfHeldOut(*dataset_));
  }
  return *windows_hash_;
}

}  // namespace signvote
