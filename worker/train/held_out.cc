#include "worker/train/held_out.h"

#include <algorithm>
#include <limits>

#include "common/check.h"
#include "common/status.h"
#include "worker/train/batch_view.h"

namespace signvote {

void HeldOutEvaluation::Reset() {
  batch_index_ = 0;
  row_ = 0;
  sum_ = 0;
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
    sum_ += loss * static_cast<double>(count) / static_cast<double>(batch_.rows);
    row_ += count;
    rows -= count;
    if (row_ == batch_.rows) {
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
  return HeldOutLoss{.round = round_, .loss = sum_ / batches_};
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

}  // namespace signvote
