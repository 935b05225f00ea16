#pragma once
// The recent commits with their payload, kept in memory for the applier and for workers that catch
// up.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "common/ids.h"
#include "server/commit/commit_record.h"

namespace signvote {

// Keeps the newest `rounds_kept` commits, and while somebody pins older ones up to
// `rounds_pinned_max` of them. A pin that would need more is lost, never the round: a worker that
// fetches too slowly learns that it cannot win, and nobody waits for it.
//
// Ownership:  a Pin must not outlive its ring.
// Threads:    not thread-safe; the records may be read by any thread.
// Invariants: holds rounds [first(), next()) without gaps; at most rounds_kept of them while
//             nothing is pinned, and never more than rounds_pinned_max.
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

  struct Options {
    Round start;                   // the first round that will be pushed
    size_t rounds_kept = 0;        // > 0
    size_t rounds_pinned_max = 0;  // ≥ rounds_kept; 0: rounds_kept
    uint64_t payload_bytes = 0;    // of the largest commit, for the advice of a lost pin
  };

  // Keeps commits from a round on, until it is moved forward or destroyed.
  class Pin {
   public:
    Pin() = default;  // pins nothing
    Pin(Pin&& other) noexcept;
    Pin& operator=(Pin&& other) noexcept;
    ~Pin() { Release(); }

    // Pins only commits from `from` on. REQUIRES: from ≥ the round pinned so far. Without effect on
    // a pin that is lost or holds nothing.
    void Advance(Round from);
    void Release();
    // OK while the commits are kept. RESOURCE_EXHAUSTED once they are not: how far behind the
    // holder was, and the budget in bytes that would have kept them so far.
    absl::Status status() const;

   private:
    friend class CommitRing;
    Pin(CommitRing* ring, uint64_t id) : ring_(ring), id_(id) {}
    CommitRing* ring_ = nullptr;
    uint64_t id_ = 0;
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
  // REQUIRES: Reaches(from).
  [[nodiscard]] Pin PinFrom(Round from);

  Round first() const { return Round(next_.value() - records_.size()); }
  Round next() const { return next_; }
  size_t rounds_kept() const { return options_.rounds_kept; }
  size_t rounds_pinned_max() const { return options_.rounds_pinned_max; }
  uint64_t bytes() const { return bytes_; }  // of the payloads held here
  size_t pins() const { return pins_.size(); }

 private:
  struct Pinned {
    Round from;
    bool lost = false;
    Round lost_at;  // next() when it was lost
  };
  void Trim();

  const Options options_;
  std::deque<std::shared_ptr<const CommitRecord>> records_;
  Round next_;
  uint64_t bytes_ = 0;
  std::map<uint64_t, Pinned> pins_;  // by Pin::id_
  uint64_t last_pin_ = 0;
};

}  // namespace signvote
