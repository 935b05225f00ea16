#pragma once
// The held-out loss of one replica, measured a few windows at a time, so that no round waits for it:
// the replica is kept, and rounds go on while it is evaluated.
// docs/decisions/0012-held-out-in-slices.md.

#include <cstdint>
#include <optional>
#include <vector>

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
  // Standard error of the mean over the windows; 0 where there is only one.
  double error = 0;
  std::optional<double> perplexity;  // of a model of tokens: e^loss
  uint64_t windows = 0;              // hash of what it was measured on (held_out_windows.h)
};

// Ownership: owns neither model nor data set.
// Threads:   not thread-safe.
class HeldOutEvaluation {
 public:
  // REQUIRES: the data set has held-out windows, of which `rows_at_once` > 0 fit into one pass.
  HeldOutEvaluation(Model* model, const Dataset* dataset, Clock* clock, uint64_t rows_at_once);

  // Keeps x_t, which holds all commits before `round`, and measures it from now on, in `slices` > 0
  // slices, instead of an earlier replica.
  absl::Status Begin(Round round, uint64_t slices);
  bool running() const { return running_; }
  Round round() const { return round_; }  // of the last Begin()

  // Measures further windows; the loss, once all are. REQUIRES: running().
  absl::StatusOr<std::optional<HeldOutLoss>> Slice();
  // Measures what is left. REQUIRES: running().
  absl::StatusOr<HeldOutLoss> Finish();
  // Measures x_t itself, which holds all commits before `round`, in one go and without a copy.
  absl::StatusOr<HeldOutLoss> Now(Round round);

  // The windows' hash. Reads them all the first time.
  absl::StatusOr<uint64_t> WindowsHash();

  double seconds() const { return seconds_; }  // spent so far

 private:
  // Up to `windows` further ones at a slot.
  absl::Status Measure(ReplicaSlot slot, uint64_t windows);
  absl::StatusOr<HeldOutLoss> Result();
  bool done() const { return losses_.size() == windows_; }

  // Constant after construction.
  Model* const model_;
  const Dataset* const dataset_;
  Clock* const clock_;
  const uint64_t rows_at_once_;
  const uint64_t windows_;

  bool running_ = false;
  Round round_;
  uint64_t per_slice_ = 1;      // windows
  std::vector<double> losses_;  // of the first windows: the measurement in progress
  Batch batch_;
  std::optional<uint64_t> windows_hash_;
  double seconds_ = 0;
};

}  // namespace signvote
