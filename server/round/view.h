#pragma once
// What status pages show of the engine; plain copies.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "server/round/state.h"
#include "server/round/types.h"

namespace signvote::round {

struct MemberView {
  WorkerId worker;
  std::string name;
  Incarnation incarnation;
  Share share;
  Role role = Role::kMember;
  bool connected = false;
  bool member_of_open_round = false;
  uint32_t abstentions_in_a_row = 0;
  uint64_t abstentions = 0;
  uint64_t ballots = 0;  // rounds in which its ballot counted as given
  uint64_t late_chunks = 0;
  uint64_t duplicate_chunks = 0;
  std::optional<Duration> median_arrival;
  std::optional<uint64_t> final_digest;
};

// The transitions stand in engine.h.
enum class Phase {
  kWaitingForWorkers,
  kRoundOpen,
  kCommitting,      // a commit is proposed and not durable yet
  kWaitingForRoom,  // the server waits for its own applier
  kBackingOff,      // the last round closed without a step; the next one opens a little later
  kPaused,
  kFinishing,
  kEnded
};

struct EngineView {
  Phase phase = Phase::kWaitingForWorkers;
  Round round;  // next round to commit; while committing: the one after that
  Attempt attempt;
  DataStep data_step;        // of the next round to commit
  uint64_t main_rounds = 0;  // committed so far
  uint64_t minibatches = 0;  // that all rounds so far asked of a worker
  RaceProgress race;         // of the rule, also before the first round of a restart
  std::optional<Duration> deadline_left;
  std::vector<MemberView> workers;  // everybody who is not forgotten, by WorkerId
  EngineTotals totals;
};

}  // namespace signvote::round
