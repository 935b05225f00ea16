#pragma once
// Everything that an engine must remember to go on in another process. Plain data: who writes it to
// bytes is no matter of this folder.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "server/round/types.h"

namespace signvote::round {

// Durations that were seen, oldest first (arrivals.h).
struct ArrivalState {
  std::vector<Duration> recent;  // the last ones
  std::vector<Duration> first;   // the first ones of all
  bool operator==(const ArrivalState&) const = default;
};

// The same of rounds with local steps: of computing a minibatch, and of sending a ballot.
struct LocalArrivalState {
  ArrivalState steps, sendings;
  bool operator==(const LocalArrivalState&) const = default;
};

// What the engine knows of one name. Nobody is connected in a state.
struct WorkerState {
  WorkerId id;
  std::string name;
  Incarnation incarnation;  // the last one; only a higher one can become ready
  Role role = Role::kMember;
  bool evicted = false;
  Round last_seen;  // the round in which it was lost; of those away the longest are forgotten first
  uint32_t abstentions_in_a_row = 0;
  uint64_t abstentions = 0;
  uint64_t ballots = 0;
  uint64_t late_chunks = 0;
  uint64_t duplicate_chunks = 0;
  ArrivalState arrivals;
  bool growth_noticed = false;  // that it is waited for no longer was said once
  LocalArrivalState local;
  bool operator==(const WorkerState&) const = default;
};

struct ShareState {
  Share share;
  WorkerId holder;
  Round free_from;  // reserved for the holder before this round
  bool operator==(const ShareState&) const = default;
};

// Where the run stands (course.h).
struct CourseState {
  DataStep data_step;        // minibatch of the next round
  uint64_t main_rounds = 0;  // committed so far
  uint64_t minibatches = 0;  // that all rounds so far asked of a worker
  float gamma = 0;           // the last committed stepsize; 0: none yet
  bool run_done = false;
  uint32_t nonfinite_in_a_row = 0;  // last rounds of kind none for non-finite losses alone
  uint32_t stepless_in_a_row = 0;   // last rounds of kind none for other reasons
  std::string rule;  // StepsizeRule::Save(), with losses that a race holds; empty: new
  bool operator==(const CourseState&) const = default;
};

// What the status pages count over the run.
struct EngineTotals {
  uint64_t joins = 0, losses = 0, abstentions = 0, late_chunks = 0, duplicate_chunks = 0,
           stale_messages = 0;
  uint64_t digest_mismatches = 0, attempts_reopened = 0, scalars_refused = 0;
  uint64_t rounds_without_step = 0;  // commits of kind none
  uint64_t tallies_dropped = 0;      // of older attempts
  bool operator==(const EngineTotals&) const = default;
};

// The first value of a run is EngineState{}.
struct EngineState {
  Round round;  // the next to commit
  CourseState course;
  std::vector<WorkerState> workers;  // by id
  std::vector<ShareState> shares;    // by share
  bool paused = false;
  ArrivalState arrivals;    // of a round: the median over its members
  LocalArrivalState local;  // likewise
  EngineTotals totals;
  bool operator==(const EngineState&) const = default;
};

}  // namespace signvote::round
