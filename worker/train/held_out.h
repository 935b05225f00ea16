#pragma once
// The held-out loss of one replica, measured a few rows at a time, so that no round waits for it:
// the replica is kept, and rounds go on while it is evaluated.
// docs/decisions/0012-held-out-in-slices.md.

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "worker/data/dataset.h"
#include "worker/models/model.h"

namespace signvote {

struct HeldOutLoss {
  Round round;      // of the replica that holds all commits before this round
  double loss = 0;  // nats per target
  // Standard error of the mean over the micro-batches; 0 where there is only one.
  double error = 0;
};

// Ownership: owns neither model nor data set.
// Threads:   not thread-safe.
class HeldOutEvaluation {
 public:
  // The loss over `batches` > 0 micro-batches.
  HeldOutEvaluation(Model* model, const Dataset* dataset, Clock* clock, uint32_t batches)
      : model_(model), dataset_(dataset), clock_(clock), batches_(batches) {}

  // Keeps x_t, which holds all commits before `round`, and measures it from now on instead of an
  // earlier replica.
  absl::Status Begin(Round round);
  bool running() const { return running_; }
  Round round() const { return round_; }  // of the last Begin()

  // Measures further rows so that `slices` calls measure all; the loss, once all are. REQUIRES:
  // running().
  absl::StatusOr<std::optional<HeldOutLoss>> Slice(uint64_t slices);
  // Measures what is left. REQUIRES: running().
  absl::StatusOr<HeldOutLoss> Finish();
  // Measures x_t itself, in one go and without a copy.
  absl::StatusOr<double> Now();

  // Hash of the windows that are measured, XXH3-64 over their inputs and targets: losses of equal
  // hashes may be compared. Reads them all the first time.
  absl::StatusOr<uint64_t> WindowsHash();
  uint64_t windows_hash() const { return windows_hash_; }  // 0 before

  double seconds() const { return seconds_; }  // spent so far

 private:
  // Up to `rows` further rows at a slot.
  absl::Status Measure(ReplicaSlot slot, uint64_t rows);
  void Reset();
  double StandardError() const;
  bool done() const { return batch_index_ == batches_; }

  Model* const model_;
  const Dataset* const dataset_;
  Clock* const clock_;
  const uint32_t batches_;

  bool running_ = false;
  Round round_;
  // The measurement in progress: its next row is row_ of batch_, which is micro-batch batch_index_.
  Batch batch_;
  uint32_t batch_index_ = 0;
  uint64_t row_ = 0;
  double sum_ = 0;         // of the means of micro-batches
  double squares_ = 0;     // of their squares
  double batch_mean_ = 0;  // of the rows of batch_ that are measured
  uint64_t windows_hash_ = 0;
  double seconds_ = 0;
};

}  // namespace signvote
