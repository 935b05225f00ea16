#pragma once
// Takes snapshots of a run beside its rounds, and lets go of old ones and of the segments that only
// those needed.

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/disk.h"
#include "common/mutex.h"
#include "server/journal/journal.h"
#include "server/journal/snapshot.h"

namespace signvote::journal {

struct SnapshotOptions {
  // Rounds between two; 0: whenever a recovery would play commits for more than kReplayMost, or read
  // more than kBytesMost of them.
  uint64_t every = 0;
  size_t keep = 2;  // ≥ 1: the newest of them
};
inline constexpr Duration kReplayMost = std::chrono::seconds(2);
inline constexpr uint64_t kBytesMost = uint64_t{1} << 30;
// After one that failed, while there is an older one.
inline constexpr Duration kTryAgain = std::chrono::seconds(30);

// Ownership:  disk, journal and clock must outlive it.
// Threads:    one of its own; methods are thread-safe. `copy` runs on it.
// Durability: a snapshot counts once it is durable and was read again. Only then goes an older one.
// Failure:    one that fails is told in the log and tried again later; the first one of a run fails
//             the journal, because nothing would stand on it.
class Snapshotter {
 public:
  // The replica at one round. CANCELLED: `give_up` said so.
  struct Copied {
    Round round;
    std::vector<float> x, x0;  // x0 empty: not kept
  };
  using Copy = std::function<absl::StatusOr<Copied>(const GiveUp& give_up)>;

  // `kept`: snapshots that are there, the newest first.
  Snapshotter(Disk* disk, const SnapshotOptions& options, Journal* journal, std::vector<Round> kept,
              Clock* clock);
  ~Snapshotter();

  // Begins the thread. Called at most once.
  void Start(Copy copy);
  // The replica moved.
  void OnApplied();
  // Ends the thread; a snapshot that is being written is given up. Idempotent.
  void Stop();

  // Without a thread, as a simulation runs it: in place of Start(), and what the thread does whenever it
  // wakes. Not OK: a snapshot was due, and could not be written.
  void StartByTurns(Copy copy) { copy_ = std::move(copy); }
  absl::Status Turn();

  struct Stats {
    std::optional<Round> newest;
    Time taken;  // when the newest was, or when this process began to look after one
    uint64_t taken_total = 0, failed_total = 0;
  };
  Stats stats() const;

 private:
  void Loop();
  bool Due() const;
  absl::Status TakeOne();
  absl::Status DropOld();
  bool stopping() const;

  // Constant after Start().
  Disk* const disk_;
  const SnapshotOptions options_;
  Journal* const journal_;
  Clock* const clock_;
  Copy copy_;

  // The thread's.
  std::vector<Round> kept_;  // the newest first
  std::optional<Time> not_before_;
  uint64_t written_ = 0;  // bytes of the journal by this process, when the newest was taken

  mutable Mutex mu_;
  CondVar changed_;
  bool looks_ ABSL_GUARDED_BY(mu_) = true;  // something may be due
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  Stats stats_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
};

}  // namespace signvote::journal
