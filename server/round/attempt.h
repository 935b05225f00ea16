#pragma once
// What the engine keeps of the attempt that is open, and the worker records behind it. Plain data.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "server/round/arrivals.h"
#include "server/round/types.h"

namespace signvote::round {

// What one seat has sent in one attempt.
struct Ballot {
  std::vector<bool> in;  // by chunk; late chunks too
  uint32_t in_count = 0;
  uint32_t counted = 0;    // chunks in which it was counted
  bool abstained = false;  // said so before the ballot was complete
  AbstainReason reason = AbstainReason::kOther;
  bool scalars_answered = false;         // they came, if only to be refused
  std::optional<WorkerScalars> scalars;  // set unless refused
};

struct SeatState {
  Seat seat;
  bool live = true;  // connected and not leaving: somebody to wait for
  Ballot ballot;

  bool member() const { return seat.role == Role::kMember; }
  bool complete(uint32_t chunks) const { return ballot.in_count == chunks; }
};

// One attempt of a round, from its opening to its commit. Threads: thread-compatible.
struct OpenAttempt {
  // The worker's seat, or null.
  SeatState* Find(WorkerId id);
  bool AllClosed() const { return closed_count == closed.size(); }
  // Counts the members whose ballots of the chunk are in. REQUIRES: the chunk is not closed.
  CloseChunk Close(ChunkIndex chunk, Time now);
  // What the attempt knows of its commit: all but the stepsize, the times and whether a digest is
  // due. REQUIRES: AllClosed().
  CommitRound Summary(uint64_t coordinates) const;

  Round round;
  Attempt attempt;
  Time opened;
  std::vector<SeatState> seats;  // by WorkerId
  uint32_t members = 0;
  uint32_t quorum = 0;
  bool probe = false;
  std::optional<Time> deadline;  // nullopt when deadlines are off
  bool deadline_passed = false;
  bool silence_noticed = false;
  std::vector<bool> closed;       // by chunk
  std::vector<uint32_t> counted;  // by chunk
  uint32_t closed_count = 0;
  Time last_closed;
  std::optional<Time> first_complete;
};

// What the engine knows of one name.
struct Worker {
  std::string name;
  Incarnation incarnation;
  bool connected = false;
  bool leaving = false;
  bool barred = false;
  bool seated = false;           // this incarnation has had a seat
  bool scalars_refused = false;  // the last ones
  Role role = Role::kMember;
  Round lost_in;
  uint32_t abstentions_in_a_row = 0;
  uint64_t abstentions = 0;
  uint64_t ballots = 0;
  uint64_t late_chunks = 0;
  uint64_t duplicate_chunks = 0;
  WorkerArrivals arrivals;
  std::optional<uint64_t> final_digest;

  bool ready() const { return connected && !leaving && !barred; }
};

}  // namespace signvote::round
