#pragma once
// One attempt of a round, from its opening to its commit: who has sent what, which chunks may close,
// and whether it can end at all. It counts; what follows from the counts is the engine's to decide.

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/clock.h"
#include "server/round/chunk_buckets.h"
#include "server/round/types.h"

namespace signvote::round {

// Whether a seat's worker is still there.
enum class Presence : uint8_t {
  kHere,     // somebody to wait for
  kLeaving,  // what it still sends counts, nobody waits for it
  kGone
};

struct AttemptPlan {
  Round round;
  Attempt attempt;
  uint32_t chunks = 0;
  uint32_t quorum = 0;
  std::vector<ScalarKind> wanted;
  std::vector<Seat> seats;  // by WorkerId
  Time opened;
  std::optional<Time> deadline;  // nullopt when deadlines are off
  // Silent: there is one chunk, that of the scalars.
  LocalSteps local = {};
};

// What one seat has sent, without its chunks and scalars.
struct SeatRecord {
  Presence presence = Presence::kHere;
  bool member = false;     // IsCounted()
  bool abstained = false;  // said so before the ballot was complete
  AbstainReason reason = AbstainReason::kOther;
  bool scalars_came = false;    // if only to be refused
  bool scalars_usable = false;  // came and were not refused
  uint32_t in = 0;              // chunks that came, late ones too
  uint32_t in_time = 0;  // of those, before the chunk was closed: of a member they are counted
  Time last_chunk;       // when the last one came
  // Local steps, of scalars that came: minibatches taken, and ScalarsIn::compute.
  uint32_t steps = 0;
  Duration compute{};
};

// What became of a message to the attempt.
enum class Took {
  kTaken,
  kLate,       // the chunk was closed before; it is in, and does not count
  kDuplicate,  // of a chunk that is in
  kRefused,    // scalars that no honest worker sends: left out of the stepsize
  kStale       // nothing that this seat could still send
};

// Where the attempt stands.
enum class Standing {
  kCounting,  // some chunk waits for ballots
  kShort,     // so many are gone that the quorum cannot be reached any more
  kNoBallot,  // everybody who is waited for has answered, and some chunk has no ballot
  kTallying,  // every chunk is closed, some are not tallied
  kTallied    // every chunk is tallied
};

// Members are waited for while they are here and have not abstained. A chunk is ripe when it has a
// ballot, and everybody who is waited for voted on it, or the deadline has passed and a quorum has
// answered: voted on it, or abstained.
//
// Threads:    thread-compatible.
// Invariants: a chunk is closed once, with all ballots of members that are in by then.
// Cost:       a chunk, scalars, a tally: O(1). An abstention or a change of presence: O(chunks that
// the seat has sent), so O(1) amortised. PassDeadline: O(chunks). Close: O(seats).
class OpenAttempt {
 public:
  // REQUIRES: chunks > 0.
  explicit OpenAttempt(AttemptPlan plan);

  const AttemptPlan& plan() const { return plan_; }
  uint32_t members() const { return members_; }
  bool deadline_passed() const { return deadline_passed_; }
  // When the last chunk was closed. REQUIRES: one was.
  Time last_closed() const { return last_closed_; }
  std::optional<Time> first_complete() const { return first_complete_; }

  // The worker's seat; nullopt when it has none, or another incarnation of it has.
  std::optional<uint32_t> Find(WorkerId worker, Incarnation incarnation) const;
  const SeatRecord& record(uint32_t seat) const { return records_[seat]; }
  bool Complete(uint32_t seat) const { return records_[seat].in == plan_.chunks; }

  // ---- what comes in
  Took AddChunk(uint32_t seat, ChunkIndex chunk, Time now);
  // The first ones of a seat stand.
  Took AddScalars(uint32_t seat, const WorkerScalars& scalars, Duration compute = {});
  Took AddAbstention(uint32_t seat, AbstainReason reason);
  // False when the tally is not one that is waited for.
  bool AddTally(const ChunkTallied& tally);
  // A seat that is gone stays gone.
  void SetPresence(uint32_t seat, Presence presence);
  void PassDeadline();

  // ---- what follows
  Standing standing() const;
  // Closes what is ripe, in order of the chunks.
  void CloseRipe(Time now, Actions& out);
  // Nobody's scalars are waited for. After an overrun deadline only those whose ballot is complete
  // are. REQUIRES: every chunk is closed.
  bool ScalarsSettled(bool overrun) const;
  // Members who abstained in words; whether every member did because its loss, or because its loss or
  // its gradient, was not finite. Of one who is silent nobody knows.
  uint32_t abstained() const { return census_.abstained; }
  bool OnlyNonFiniteLosses() const { return members_ > 0 && nonfinite_losses_ == members_; }
  bool MostlyNonFinite() const {
    return members_ > 0 && 2 * (nonfinite_losses_ + nonfinite_gradients_) >= members_;
  }
  bool OnlyNonFinite() const {
    return members_ > 0 && nonfinite_losses_ + nonfinite_gradients_ == members_;
  }
  // Fills in what the attempt knows of its commit: counts, voters, scalars with their means. Without
  // a verdict there are no counts, voters or scalars. The attempt's scalars are gone afterwards.
  // REQUIRES: kTallied, unless it is without a verdict.
  enum class Verdict { kTaken, kDropped };
  void Summarise(Verdict verdict, uint64_t coordinates, CommitRound& commit);

 private:
  // Sums over members, kept up to date seat by seat.
  struct Census {
    uint32_t waited = 0;      // here, and did not abstain
    uint32_t can_answer = 0;  // here, or gone with a complete ballot or an abstention
    uint32_t abstained = 0;
    uint32_t owing_whole = 0;  // waited for, with counted chunks, without scalars; ballot complete
    uint32_t owing_partial = 0;  // the same; ballot not complete
  };
  bool Waited(const SeatRecord& r) const {
    return r.member && r.presence == Presence::kHere && !r.abstained;
  }
  // Takes the seat's part out of the census, lets `change` change its record, and puts it in again.
  template <typename Change>
  void Recount(uint32_t seat, Change change);
  void Count(const SeatRecord& record, uint32_t by);

  bool Has(uint32_t seat, uint32_t chunk) const {
    return (in_[seat * words_ + chunk / 64] >> (chunk % 64) & 1) != 0;
  }
  // Calls f(chunk) for every open chunk that the seat has sent.
  template <typename F>
  void ForOpenChunksOf(uint32_t seat, F f) const;
  bool Ripe(uint32_t chunk) const;
  void FindRipe();
  void FindRipeIn(const ChunkBuckets& buckets, uint32_t count);
  void AddRipe(uint32_t chunk);
  CloseChunk Close(uint32_t chunk, Time now);

  // Constant after construction.
  AttemptPlan plan_;
  size_t words_;  // of a seat's chunks in in_
  uint32_t members_ = 0;
  absl::flat_hash_map<WorkerId, uint32_t> seat_of_;

  // By seat.
  std::vector<SeatRecord> records_;
  std::vector<uint64_t> in_;  // one bit per chunk, words_ per seat
  std::vector<WorkerScalars> scalars_;
  Census census_;
  uint32_t nonfinite_losses_ = 0, nonfinite_gradients_ = 0;  // members who abstained for that

  // By chunk.
  enum class ChunkPhase : uint8_t { kOpen, kRipe, kClosed, kTallied };
  std::vector<ChunkPhase> phases_;
  std::vector<uint32_t> ballots_;  // of members, also of those who abstained or went later
  std::vector<ChunkCount> tallies_;
  ChunkBuckets waited_;   // open chunks by ballots of members who are waited for
  ChunkBuckets willing_;  // open chunks by ballots of members who did not abstain
  uint32_t empty_ = 0;    // open chunks without a ballot
  uint32_t closed_ = 0;
  uint32_t tallied_ = 0;
  std::vector<uint32_t> ripe_;

  bool deadline_passed_ = false;
  Time last_closed_;
  std::optional<Time> first_complete_;
};

}  // namespace signvote::round
