#pragma once
// What one simulated run looks like, drawn from its seed, and how often each injector struck.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "server/round/engine.h"

namespace signvote::sim {

inline constexpr uint64_t kCoordinates = 2048;
inline constexpr uint64_t kChunkCoordinates = 512;
inline constexpr uint32_t kChunks = 4;
inline constexpr uint32_t kWorkersFirst = 3;  // those that are there from the start
inline constexpr uint32_t kWorkersMax = 4;    // with the late joiner
inline constexpr uint64_t kRoundsMin = 64;

// X-list: name of the injector, what it does.
#define SIGNVOTE_SIM_FAULTS(X)                                                               \
  X(kCrash, "crash")              /* the process dies with its state and starts again */     \
  X(kStreamLoss, "stream_loss")   /* the connection breaks; the worker reconnects */         \
  X(kBlackHole, "black_hole")     /* every message is lost until both sides notice */        \
  X(kHang, "hang")                /* the process stops for a while and goes on */            \
  X(kSlow, "slow")                /* ballots take many times longer for some rounds */       \
  X(kDuplicate, "duplicate")      /* a message arrives twice, a ballot with other bits */    \
  X(kReorder, "reorder")          /* a message is overtaken by later ones */                 \
  X(kGhost, "ghost")              /* a message of a lost stream arrives after its loss */    \
  X(kVerdictLoss, "verdict_loss") /* a verdict chunk is lost: the worker fetches the bits */ \
  X(kLateJoin, "late_join")       /* one more worker joins in the middle of the run */       \
  X(kDrain, "drain")              /* the operator drains a worker; it comes back later */    \
  X(kEvict, "evict")              /* the operator evicts the late joiner */                  \
  X(kPause, "pause")              /* the operator pauses the run and resumes it */           \
  X(kAbstain, "abstain")          /* a worker abstains in the middle of its ballot */        \
  X(kBadScalars, "bad_scalars")   /* a worker's loss is not a number */                      \
  X(kDamage, "damage")            /* a coordinate of a replica changes by itself */

enum class Fault : uint8_t {
#define SIGNVOTE_SIM_ENUM(id, name) id,
  SIGNVOTE_SIM_FAULTS(SIGNVOTE_SIM_ENUM)
#undef SIGNVOTE_SIM_ENUM
      kCount
};
inline constexpr size_t kFaultCount = static_cast<size_t>(Fault::kCount);
const char* FaultName(Fault fault);

struct SimOptions {
  uint64_t seed = 0;
  round::EngineConfig engine;
  RuleFlags rule;
  std::array<bool, kFaultCount> enabled{};
  double fault_interval_s = 1;    // between two strikes, on average
  double message_fault_rate = 0;  // per message, for the faults that befall messages
  double compute_s = 0.3;         // a worker's usual time for one ballot
  uint64_t heal_round = 0;        // from here on nothing goes wrong any more
  bool trace = false;             // print what happens, for a failing seed

  bool on(Fault fault) const { return enabled[static_cast<size_t>(fault)]; }
  // One line with everything that was drawn.
  std::string Describe() const;
};
SimOptions DrawOptions(uint64_t seed);

// What happened, over any number of runs.
struct SimCounters {
  std::array<uint64_t, kFaultCount> struck{};
  uint64_t runs = 0, rounds = 0, events = 0;
  uint64_t attempts_reopened = 0, abstentions = 0, late_chunks = 0, duplicate_chunks = 0,
           stale_messages = 0;
  uint64_t observers = 0, members_again = 0, resyncs = 0, scalars_refused = 0;
  uint64_t snapshots = 0, catch_ups = 0, fetches = 0, partial_commits = 0;

  std::string Describe() const;
};

}  // namespace signvote::sim
