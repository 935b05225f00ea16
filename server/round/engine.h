#pragma once
// The round engine: who votes, until when, what is committed. The only place that decides.
//
// A pure state machine: Step(now, event) → actions. No thread, clock, file, socket or randomness,
// so that thousands of seeded simulations of crashes, losses, duplicates and reordering run in
// seconds (tests/sim). The caller carries the actions out in order, before the next event.
//
// Threads:    thread-compatible; one thread drives it.
// Invariants: commits are gap-free; a (round, attempt, chunk) is closed at most once; a worker is
// counted at most once
//             per (round, attempt, chunk); members and quorum change only when an attempt opens.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/layout.h"
#include "server/round/types.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote::round {

struct DeadlineConfig {
  // off: a round waits for every live member (determinism tests)
  bool enabled = true;
  Duration initial = std::chrono::seconds(60);  // while no arrival was seen yet
  // grace = clamp(multiple × median arrival, floor, ceiling)
  double grace_multiple = 1.0;
  Duration grace_floor = std::chrono::milliseconds(500);
  Duration grace_ceiling = std::chrono::milliseconds(1500);
};

struct EngineConfig {
  uint64_t coordinates = 0;  // d, for the density
  uint32_t chunks = 0;
  uint64_t rounds_max = 0;   // the run ends after this many committed rounds; > 0
  uint32_t workers_min = 1;  // round 0 opens once this many workers are ready
  // workers connected at a time; the tally's limit is the upper bound
  uint32_t workers_max = 1024;
  uint32_t quorum = 0;  // 0: ⌈members/2⌉
  DeadlineConfig deadline;
  uint32_t observer_after = 5;       // abstentions in a row
  uint64_t share_hold_rounds = 100;  // a lost worker's share stays reserved for its name
  uint64_t digest_every = 50;        // rounds between replica digests; 0: only at the end
  Duration wait_timeout = std::chrono::hours(1);  // longest wait for workers or for a quorum
  Duration linger = std::chrono::seconds(30);     // longest wait for final digests
  double x0_max_abs = 0;
  double step_scale_max = 1;
};

// INVALID_ARGUMENT names the first value that is out of range, and the range.
absl::Status ValidateConfig(const EngineConfig& config);

// What status pages show; plain copies.
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
  uint64_t ballots = 0;  // rounds in which it was counted
  uint64_t late_chunks = 0;
  uint64_t duplicate_chunks = 0;
  std::optional<Duration> median_arrival;
  std::optional<uint64_t> final_digest;
};
enum class Phase { kWaitingForWorkers, kRoundOpen, kPaused, kFinishing, kEnded };
struct EngineView {
  Phase phase = Phase::kWaitingForWorkers;
  Round round;  // next round to commit
  Attempt attempt;
  std::optional<Duration> deadline_left;
  std::vector<MemberView> workers;  // everybody who is not forgotten, by WorkerId
  uint64_t joins = 0, losses = 0, abstentions = 0, late_chunks = 0, duplicate_chunks = 0,
           stale_messages = 0;
  uint64_t digest_mismatches = 0, attempts_reopened = 0, scalars_refused = 0;
};

class Engine {
 public:
  // INVALID_ARGUMENT when a config value is out of range. The engine starts waiting for workers at
  // `now`.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(EngineConfig config,
                                                        std::unique_ptr<StepsizeRule> rule,
                                                        Time now);
  virtual ~Engine() = default;

  // Times never go back. Events of past rounds, attempts or incarnations are counted and ignored,
  // never an error. Deadlines act in Tick events only, so ballots that lie in the caller's queue
  // before the Tick are still in time. After EndRun every event is ignored.
  virtual Actions Step(Time now, const Event& event) = 0;
  // When a Tick could next change something; nullopt: only another event can. The caller ticks at
  // or after it.
  virtual std::optional<Time> NextTick() const = 0;
  virtual EngineView View(Time now) const = 0;
};

}  // namespace signvote::round
