#pragma once
// The recent commits with their verdict bits, kept in memory for workers that catch up and for the
// applier.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "common/ids.h"

namespace signvote {

// One committed round. Immutable and shared: the ring, the applier and gRPC's send queues hold the
// same record.
struct CommitRecord {
  Round round;
  Attempt attempt;
  DataStep data_step;
  float gamma = 0;
  float rho = 1;
  std::vector<uint32_t> counted;  // ballots counted, per chunk
  uint64_t verdict_hash = 0;      // XXH3-64 of the packed verdict
  bool digest_due = false;
  std::optional<double> loss;
  uint32_t voters = 0;
  std::shared_ptr<const uint8_t> verdict;  // packed bits of the whole model
};

// Threads:    not thread-safe; the records may be read by any thread.
// Invariants: holds rounds [first(), next()) without gaps, at most capacity of them.
class CommitRing {
 public:
  static constexpr size_t kRoundsMin = 4;
  static constexpr size_t kRoundsMax = 1024;
  // How many rounds of `verdict_bytes` fit into `budget_bytes`, between kRoundsMin and kRoundsMax.
  static size_t CapacityFor(uint64_t budget_bytes, size_t verdict_bytes);

  explicit CommitRing(size_t capacity) : capacity_(capacity) {}
  // REQUIRES: record->round == next().
  void Push(std::shared_ptr<const CommitRecord> record);
  // nullptr: not committed yet, or no longer kept.
  std::shared_ptr<const CommitRecord> Find(Round round) const;
  // A worker whose replica holds all commits before `round` can be brought up to date from here.
  bool Reaches(Round round) const { return round >= first() && round <= next_; }
  Round first() const { return Round(next_.value() - records_.size()); }
  Round next() const { return next_; }
  size_t capacity() const { return capacity_; }

 private:
  const size_t capacity_;
  std::deque<std::shared_ptr<const CommitRecord>> records_;
  Round next_;
};

}  // namespace signvote
