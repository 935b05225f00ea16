#include "worker/train/held_out.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/check.h"
#include "common/checksum.h"
#include "common/status.h"
#include "worker/train/batch_view.h"

namespace signvote {

void HeldOutEvaluation::Reset() {
  batch_index_ = 0;
  row_ = 0;
  sum_ = 0;
  squares_ = 0;
  batch_mean_ = 0;
}

double HeldOutEvaluation::StandardError() const {
  if (batches_ < 2) return 0;
  const double n = batches_;
  const double variance = (squares_ - sum_ * sum_ / n) / (n - 1);
  return std::sqrt(std::max(0.0, variance) / n);
}

absl::Status HeldOutEvaluation::Begin(Round round) {
  const Time start = clock_->Now();
  SIGNVOTE_RETURN_IF_ERROR(model_->Keep(ReplicaSlot::kSnapshot));
  seconds_ += ToSeconds(clock_->Now() - start);
  Reset();
  round_ = round;
  running_ = true;
  return absl::OkStatus();
}

absl::Status HeldOutEvaluation::Measure(ReplicaSlot slot, uint64_t rows) {
  const Time start = clock_->Now();
  while (rows > 0 && !done()) {
    if (row_ == 0) SIGNVOTE_RETURN_IF_ERROR(dataset_->HeldOutBatch(batch_index_, &batch_));
    const uint64_t count = std::min(rows, batch_.rows - row_);
    SIGNVOTE_ASSIGN_OR_RETURN(const double loss,
                              model_->Evaluate(slot, RowsOf(batch_, row_, count)));
    const double part = loss * static_cast<double>(count) / static_cast<double>(batch_.rows);
    sum_ += part;
    batch_mean_ += part;
    row_ += count;
    rows -= count;
    if (row_ == batch_.rows) {
      squares_ += batch_mean_ * batch_mean_;
      batch_mean_ = 0;
      ++batch_index_;
      row_ = 0;
    }
  }
  seconds_ += ToSeconds(clock_->Now() - start);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<HeldOutLoss>> HeldOutEvaluation::Slice(uint64_t slices) {
  SIGNVOTE_CHECK(running_ && slices > 0);
  if (batch_.rows == 0) SIGNVOTE_RETURN_IF_ERROR(dataset_->HeldOutBatch(0, &batch_));
  const uint64_t all = batch_.rows * batches_;
  SIGNVOTE_RETURN_IF_ERROR(Measure(ReplicaSlot::kSnapshot, (all - 1) / slices + 1));
  if (!done()) return std::optional<HeldOutLoss>();
  running_ = false;
  return HeldOutLoss{.round = round_, .loss = sum_ / batches_, .error = StandardError()};
}

absl::StatusOr<HeldOutLoss> HeldOutEvaluation::Finish() {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<HeldOutLoss> loss, Slice(1));
  return *loss;
}

absl::StatusOr<double> HeldOutEvaluation::Now() {
  running_ = false;
  Reset();
  SIGNVOTE_RETURN_IF_ERROR(Measure(ReplicaSlot::kCurrent, std::numeric_limits<uint64_t>::max()));
  return sum_ / batches_;
}

absl::StatusOr<uint64_t> HeldOutEvaluation::WindowsHash() {
  if (windows_hash_ != 0) return windows_hash_;
  Xxh3Stream hash;
  Batch batch;
  for (uint32_t k = 0; k < batches_; ++k) {
    SIGNVOTE_RETURN_IF_ERROR(dataset_->HeldOutBatch(k, &batch));
    const uint64_t sizes[] = {batch.rows, batch.length, batch.inputs.size(), batch.values.size(),
                              batch.targets.size()};
    hash.Update(sizes, sizeof(sizes));
    hash.Update(batch.inputs.data(), batch.inputs.size() * sizeof(batch.inputs[0]));
    hash.Update(batch.values.data(), batch.values.size() * sizeof(batch.values[0]));
    hash.Update(batch.targets.data(), batch.targets.size() * sizeof(batch.targets[0]));
  }
  windows_hash_ = hash.Digest();
  return windows_hash_;
}

}  // namespace signvote
