#pragma once
// The recent commits with their payload, kept in memory for the applier and for workers that catch
// up.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>

#include "absl/status/status.h"
#include "common/ids.h"
#include "server/commit/commit_record.h"

namespace signvote {

// Keeps the newest `rounds_kept` commits, whoever may need older ones: a worker that reads too slowly
// learns that it cannot win, and nobody waits for it.
//
// Threads:    not thread-safe; the records may be read by any thread.
// Invariants: holds rounds [first(), next()) without gaps, at most rounds_kept of them.
class CommitRing {
 public:
  static constexpr size_t kRoundsMin = 4;
  static constexpr size_t kRoundsMax = 1024;
  static constexpr uint64_t kDefaultBytesMin = uint64_t{64} << 20;
  static constexpr uint64_t kDefaultRounds = 8;

  // max(64 MiB, 8 payloads): the catch-up budget when nobody says another.
  static uint64_t DefaultBudget(uint64_t payload_bytes);
  // How many payloads fit into `budget_bytes`, between kRoundsMin and kRoundsMax.
  static size_t CapacityFor(uint64_t budget_bytes, uint64_t payload_bytes);
  // What a ring of that capacity holds when it is full: more than a budget below kRoundsMin payloads.
  static uint64_t BytesFor(uint64_t budget_bytes, uint64_t payload_bytes);

  struct Options {
    Round start;                 // the first round that will be pushed
    size_t rounds_kept = 0;      // > 0
    uint64_t payload_bytes = 0;  // of the largest commit, for the advice of CheckReaches()
  };

  explicit CommitRing(const Options& options);
  CommitRing(const CommitRing&) = delete;
  CommitRing& operator=(const CommitRing&) = delete;

  // REQUIRES: record->round == next().
  void Push(std::shared_ptr<const CommitRecord> record);
  // nullptr: not committed yet, or no longer kept.
  std::shared_ptr<const CommitRecord> Find(Round round) const;
  // A replica that holds all commits before `round` can be brought up to date from here.
  bool Reaches(Round round) const { return round >= first() && round <= next_; }
  // OK when it does; else RESOURCE_EXHAUSTED: how far behind the replica is, and the budget in bytes
  // that would have sufficed so far. REQUIRES: round <= next().
  absl::Status CheckReaches(Round round) const;

  Round first() const { return Round(next_.value() - records_.size()); }
  Round next() const { return next_; }
  size_t rounds_kept() const { return options_.rounds_kept; }
  uint64_t bytes() const { return bytes_; }  // of the payloads held here

 private:
  const Options options_;
  std::deque<std::shared_ptr<const CommitRecord>> records_;
  Round next_;
  uint64_t bytes_ = 0;
};

}  // namespace signvote
