#pragma once
// The vote of one attempt of a round: whose ballots lie where, and what of them has been counted.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/payload_plan.h"
#include "server/round/types.h"
#include "server/vote/ballot_slots.h"
#include "server/vote/buffer_pool.h"
#include "server/vote/tally_sink.h"

namespace signvote {

// A chunk's way: open ──Close──▶ closed ──Take──▶ tallied. When all are tallied, Finish() hands out
// the vote; Abandon() ends an attempt that comes to nothing.
//
// Ballots that a tally reads are never written: an attempt that opens while tallies of an older one
// are at work gets other buffers, and the old ones live until those are done. What such a tally
// says is dropped.
//
// The optimizer of dense tensors is the run's, and lives here: what a round makes of it lies in a buffer
// of its own, so that an attempt that comes to nothing leaves no trace. It moves on in Finish().
//
// Ownership:  shares the slots with their sessions. Sink and pools must outlive it.
// Threads:    the run's thread only; results arrive there as events (Take).
// Invariants: tallied ⊆ closed; at most one attempt is open.
class OpenVote {
 public:
  struct Options {
    PayloadPlan plan;     // of commits
    PayloadPlan ballots;  // default: every chunk is signs
    uint64_t seed = 0;    // the run's, for coins
    // Of dense chunks, where the plan has some.
    const Layout* layout = nullptr;
    DenseOptimizer optimizer;
    Aggregate aggregate = Aggregate::kVote;
  };
  // The optimizer of dense chunks between two rounds.
  struct Optimizer {
    std::optional<DenseOptimizer::Kind> kind;  // nullopt: no chunk is dense
    uint64_t steps = 0;        // that it has made since the start or the last rewind
    OptimizerScalars scalars;  // behind them
    std::vector<float> state;  // [DenseOptimizer::planes()][coordinates of dense chunks]

    bool operator==(const Optimizer&) const = default;
  };
  // A worker that may vote, in the order in which statistics are given back.
  struct Voter {
    round::WorkerId worker;
    std::shared_ptr<BallotSlots> slots;
  };
  // The whole vote of an attempt.
  struct Result {
    Round round;
    Attempt attempt;
    std::vector<ChunkSum> chunks;
    std::shared_ptr<const uint8_t> payload;  // plan.TotalBytes()
    Duration tally_time{};                   // of all chunks, summed over the threads
    // Whose ballots were counted, in order of chunk: neighbours with the same voters together.
    struct Counted {
      uint32_t chunks = 0;
      std::vector<round::WorkerId> voters;  // as Close() was given them
    };
    std::vector<Counted> counted;
  };
  // What the sample says (vote_statistics.h), by worker.
  struct Statistics {
    uint64_t coordinates = 0, ties = 0;
    struct Worker {
      round::WorkerId worker;
      uint64_t coordinates = 0, agreeing = 0;
      uint32_t chunks = 0;  // counted; of all chunks, not of the sample
    };
    std::vector<Worker> workers;  // those with a counted chunk, in the order of Open()
  };

  // `verdicts`: buffers of plan.TotalBytes(); `ballots`: of ballots.TotalBytes(); `states`: of the
  // optimizer's state over all coordinates of dense chunks, null where it has none.
  OpenVote(Options options, TallySink* sink, BufferPool* verdicts, BufferPool* ballots,
           BufferPool* states = nullptr);

  // Opens an attempt; one that was open is abandoned.
  void Open(Round round, Attempt attempt, std::vector<Voter> voters);
  // Nobody's chunk k is taken any more; those of `voters` are counted. REQUIRES: open, chunk k not
  // closed before, every voter is one of Open()'s and its chunk is complete.
  void Close(ChunkIndex k, std::span<const round::WorkerId> voters);
  // A chunk of the open attempt was counted. False: it is of another attempt, or known already.
  bool Take(const ChunkTallied& tallied);
  // REQUIRES: complete(). No attempt is open afterwards; statistics() stay until the next Open().
  Result Finish();
  // The attempt, if one is open, ends without a result; waiting tallies are dropped.
  void Abandon();
  // The optimizer of dense chunks begins anew, as a rewind asks for. REQUIRES: no attempt is open.
  void ForgetOptimizer();
  // The numbers that it keeps for all coordinates, behind the last committed step.
  const OptimizerScalars& scalars() const { return scalars_; }
  Optimizer SaveOptimizer() const;
  // FAILED_PRECONDITION: a state of another optimizer, or of another size, than this run's. DATA_LOSS:
  // numbers to which no run can have come. REQUIRES: no attempt is open.
  absl::Status RestoreOptimizer(const Optimizer& optimizer);

  bool open() const { return open_; }
  Round round() const { return round_; }
  Attempt attempt() const { return attempt_; }
  bool closed(ChunkIndex k) const { return chunks_[k.value()].closed; }
  bool tallied(ChunkIndex k) const { return chunks_[k.value()].tallied; }
  uint32_t closed_chunks() const { return closed_chunks_; }
  uint32_t tallied_chunks() const { return tallied_chunks_; }
  bool complete() const { return open_ && tallied_chunks_ == plan().chunks(); }
  const PayloadPlan& plan() const { return options_.plan; }
  // Of the attempt that is open or was finished last, as far as it is known. A sample that is still
  // being looked at is left out: nothing waits for statistics.
  Statistics statistics() const;

 private:
  struct Chunk {
    bool closed = false, tallied = false;
    size_t voters = 0;  // in voter_sets_
    ChunkSum sum;
    double q = 0;  // its part of the optimizer's
  };
  void OpenSlots(const Voter& voter);
  DenseAttempt BeginDense() const;

  // Constant after construction.
  const Options options_;
  TallySink* const sink_;
  BufferPool* const verdicts_;
  BufferPool* const ballots_;
  BufferPool* const states_;
  std::optional<uint64_t> dense_first_;  // first coordinate of the first dense chunk

  // The optimizer after the last committed step; null where it has no state.
  std::shared_ptr<const float> state_;
  uint64_t optimizer_steps_ = 0;
  OptimizerScalars scalars_;

  bool open_ = false;
  Round round_;
  Attempt attempt_;
  // Of the attempt that is open or was finished last.
  std::vector<Voter> voters_;
  std::vector<uint32_t> counted_of_;                      // chunks counted, by place in voters_
  std::vector<std::vector<round::WorkerId>> voter_sets_;  // that chunks were closed with
  std::unordered_map<round::WorkerId, uint32_t> place_of_;
  std::vector<Chunk> chunks_;
  uint32_t closed_chunks_ = 0, tallied_chunks_ = 0;
  Duration tally_time_{};
  std::shared_ptr<TallyShare> share_;  // null before the first attempt
  // Of older attempts, while tallies are at work on them.
  std::vector<std::shared_ptr<TallyShare>> old_shares_;
};

}  // namespace signvote
