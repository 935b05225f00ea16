#pragma once
// Where closed chunks are counted: behind one interface, so that the run's thread never does it
// unless it wants to.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "common/vote_terms.h"
#include "server/tally/dense_tally.h"
#include "server/tally/tally.h"
#include "server/vote/vote_statistics.h"

namespace signvote {

// What the tallies of dense chunks take and leave: where the optimizer stood before this round, and
// where it would stand after it.
struct DenseAttempt {
  const Layout* layout = nullptr;  // outlives every tally
  DenseOptimizer optimizer;
  Aggregate aggregate = Aggregate::kVote;  // of coordinates in dense chunks that are voted on
  uint64_t step = 0;                       // of the optimizer, with this one
  OptimizerScalars scalars;                // before it
  uint64_t first = 0;  // the first coordinate of the first dense chunk, which begins the state
  // Planes of the model's coordinates from `first` on, one behind the other; null without a state.
  std::shared_ptr<const float> in;
  std::shared_ptr<float> out;
};

// What the tallies of one attempt share, so that what they read and write outlives its owner's
// interest.
// Threads: thread-safe; the first block is constant after construction.
class TallyShare {
 public:
  TallyShare(std::vector<std::shared_ptr<const uint8_t>> ballots, std::shared_ptr<uint8_t> verdict,
             DenseAttempt dense = {});

  // By place.
  const std::shared_ptr<const uint8_t>& ballot(size_t place) const { return ballots_[place]; }
  size_t ballots() const { return ballots_.size(); }
  // Whether `ballot` is one of them.
  bool Holds(const uint8_t* ballot) const;
  const std::shared_ptr<uint8_t>& verdict() const { return verdict_; }
  const DenseAttempt& dense() const { return dense_; }

  // A tally begins and ends to read ballots here.
  void Enter();
  void Leave();
  // Nobody reads the ballots: what was read before happened before this answer.
  bool idle() const;
  // Adds what one chunk's sample says.
  void Add(const VoteStatistics& sample);
  // The sum of what was added so far.
  VoteStatistics sampled() const;

 private:
  // Constant after construction.
  const std::vector<std::shared_ptr<const uint8_t>> ballots_;  // by place
  const std::shared_ptr<uint8_t> verdict_;  // chunks are written by their tallies
  const DenseAttempt dense_;                // as is what `out` points to

  mutable Mutex mu_;
  uint32_t readers_ ABSL_GUARDED_BY(mu_) = 0;
  VoteStatistics sampled_ ABSL_GUARDED_BY(mu_);
};

// One closed chunk to be counted.
struct TallyJob {
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
  std::shared_ptr<TallyShare> share;
  std::vector<uint32_t> places;  // of the ballots to count, in TallyShare
  ChunkPlan plan;
  PayloadKind kind = PayloadKind::kSigns;  // what is made of them
  size_t ballot_offset = 0;                // where the chunk lies in each ballot
  size_t payload_offset = 0;               // where what is made of them goes in the share's verdict
  uint64_t seed = 0;                       // the run's, for coins
};

// A chunk was counted; what was made of it lies at `payload`, PayloadBytes of the job's kind.
struct ChunkTallied {
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
  uint32_t counted = 0;
  uint64_t checksum = 0;                   // XXH3-64 of the payload
  double q = 0;                            // its part of the dense optimizer's q
  std::shared_ptr<const uint8_t> payload;  // the chunk's first byte; null: elsewhere
  Duration took{};                         // of the count, on the thread that did it
};

// Counts chunks and says so through a callback; statistics of a sample follow into the job's share.
class TallySink {
 public:
  using Done = std::function<void(ChunkTallied tallied)>;

  virtual ~TallySink() = default;
  // Never waits. The job's share is entered until the count and its statistics are over, or until
  // the job is dropped.
  virtual void Submit(TallyJob job) = 0;
  // Forgets the jobs whose count has not begun; Done is not called for them. So at most one
  // attempt's chunks ever wait.
  virtual void DropWaiting() = 0;
};

// Counts in the caller's thread: Done runs inside Submit().
// Threads: thread-compatible.
class InlineTallySink final : public TallySink {
 public:
  InlineTallySink(Clock* clock, Done done) : clock_(clock), done_(std::move(done)) {}
  void Submit(TallyJob job) override;
  void DropWaiting() override {}

 private:
  Clock* const clock_;
  const Done done_;
};

// Counts in threads of its own, a chunk each, in the order in which they were submitted.
//
// Threads: thread-safe. Done runs on the internal threads, several at once.
// Invariants: what waits is bounded by the chunks that its caller submits between two
//             DropWaiting().
class TallyThreads final : public TallySink {
 public:
  // As many as there are cores, up to 4: a core reads ballots at 20 to 30 GB/s, so that few of them
  // use up a machine's memory bandwidth (tally_bench, n = 4 and n = 32).
  static size_t DefaultThreads(size_t cores);

  // REQUIRES: threads > 0.
  TallyThreads(size_t threads, Clock* clock, Done done);
  ~TallyThreads() override;

  void Submit(TallyJob job) override;
  void DropWaiting() override;
  // Drops what waits and ends the threads after the chunks they are at. What is submitted
  // afterwards is dropped. Idempotent.
  void Stop();
  size_t threads() const { return threads_.size(); }
  size_t waiting() const;

 private:
  void Work();

  // Constant after construction.
  Clock* const clock_;
  const Done done_;

  mutable Mutex mu_;
  CondVar work_;
  std::deque<TallyJob> queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::vector<std::thread> threads_;  // changed by constructor and Stop() only
};

}  // namespace signvote
