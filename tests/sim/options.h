#pragma once
// What one simulated run looks like, drawn from its seed, and how often each fault struck.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "server/journal/journal.h"
#include "server/run/run.h"

namespace signvote::sim {

// X-list: fault, its name, what happens.
#define SIGNVOTE_SIM_FAULTS(X)                                                                     \
  /* ---- workers that fail */                                                                     \
  X(kCrash, "crash")                  /* the process dies with its state, starts again later */    \
  X(kHang, "hang")                    /* it stops for a while, reads nothing, and goes on */       \
  X(kSlow, "slow")                    /* its ballots take many times longer */                     \
  X(kLateChunk, "late_chunk")         /* one chunk of each ballot comes after the deadline */      \
  X(kNoScalars, "no_scalars")         /* its scalars do not come */                                \
  X(kNonFiniteLoss, "nonfinite_loss") /* it abstains before its first chunk */                     \
  X(kNonFiniteGradient, "nonfinite_gradient") /* it abstains in the middle of its ballot */        \
  X(kDeviceFails, "device_fails")             /* the same for any other reason */                  \
  X(kAllAbstain, "all_abstain")               /* everybody abstains at once */                     \
  X(kDamage, "damage")                        /* a coordinate of a replica changes by itself */    \
  X(kLateJoin, "late_join")                   /* one more worker joins in the middle of the run */ \
  /* ---- workers and strangers that lie */                                                        \
  X(kLyingScalars, "lying_scalars")     /* NaN, infinities, 1e300, too many, 2^64-1 us */          \
  X(kLyingDigest, "lying_digest")       /* another digest than its replica's */                    \
  X(kSecondBallot, "second_ballot")     /* a chunk again, with other bits */                       \
  X(kLyingReady, "lying_ready")         /* Ready again, or of a round that is not committed */     \
  X(kBrokenProtocol, "broken_protocol") /* chunks that do not exist, of other runs or rounds */    \
  X(kSecondSession, "second_session")   /* a live worker's name joins once more */                 \
  X(kStranger, "stranger")              /* a stream that says nothing, or nonsense */              \
  X(kFetchAgain, "fetch_again")         /* the state is fetched although it is not asked for */    \
  /* ---- the network */                                                                           \
  X(kDisconnect, "disconnect")      /* a connection breaks */                                      \
  X(kBlackHole, "black_hole")       /* everything is lost until both sides notice */               \
  X(kPartition, "partition")        /* several workers are out of reach for a while */             \
  X(kDelay, "delay")                /* a message and all behind it come seconds late */            \
  X(kGarbled, "garbled")            /* a verdict's bits change, and so does its checksum */        \
  X(kSlowTransfer, "slow_transfer") /* a fetch takes longer than the ring lasts */                 \
  X(kOrphanCall, "orphan_call")     /* a fetch goes on when its session has ended */               \
  /* ---- the server */                                                                            \
  X(kSlowApplier, "slow_applier") /* the master replica's applier is late */                       \
  X(kSlowTally, "slow_tally")     /* tallies take their time, and come out of order */             \
  X(kLateDurable, "late_durable") /* commits are released late */                                  \
  X(kRestart, "restart")          /* the run goes on in another process, from its bytes */         \
  X(kStop, "stop")                /* the same after SIGTERM */                                     \
  X(kPause, "pause")              /* the operator pauses the run and resumes it */                 \
  X(kDrain, "drain")              /* the operator drains a worker; it comes back later */          \
  X(kEvict, "evict")              /* the operator evicts the last worker */                        \
  /* ---- a server with a journal, and its disk */                                                 \
  X(kKilled, "killed")                 /* the server is killed, and recovers */                    \
  X(kKilledInWrite, "killed_in_write") /* the same in the middle of a write */                     \
  X(kPowerCut, "power_cut")            /* what was not synced is torn, lost or out of order */     \
  X(kDiskFails, "disk_fails") /* writes or syncs fail, until the server is started again */        \
  X(kDiskFull, "disk_full")   /* likewise: there is no room */                                     \
  X(kLostSync, "lost_sync")   /* the disk says that it has synced, has not, and the power goes */

enum class Fault : uint8_t {
#define SIGNVOTE_SIM_ENUM(id, name) id,
  SIGNVOTE_SIM_FAULTS(SIGNVOTE_SIM_ENUM)
#undef SIGNVOTE_SIM_ENUM
      kCount
};
inline constexpr size_t kFaultCount = static_cast<size_t>(Fault::kCount);
const char* FaultName(Fault fault);
// Those before it befall every run, it and the rest one with a journal.
inline constexpr Fault kFirstOfJournal = Fault::kKilled;

// Which stepsize rule the run has.
enum class RuleUsed : uint8_t {
  kOfFlags,   // the one that RunOptions::rule names
  kTurns,     // TurnsRule (turns_rule.h): commits of every kind
  kRace,      // Lever, with trials short enough for these runs
  kRaceLite,  // likewise, and nothing is rescaled
  kSos,       // SOS, likewise
};

struct JournalUsed {
  std::optional<journal::DurabilityMode> mode;  // nullopt: there is none
  uint64_t segment_bytes = 0;
  uint64_t snapshot_every = 0;
  size_t snapshots_kept = 1;
  double sync_s = 0;            // a disk's usual time
  double fault_interval_s = 1;  // between two strikes of its faults, on average
};

struct SimOptions {
  uint64_t seed = 0;
  uint64_t coordinates = 2048;
  uint32_t workers_first = 3;  // there from the start
  uint32_t workers = 4;        // with the one that joins late, the last
  run::RunOptions run;
  size_t ring_rounds = 8;           // commits kept for those who catch up
  uint64_t part_coordinates = 256;  // of one message of a state transfer
  RuleUsed rule_used = RuleUsed::kOfFlags;
  JournalUsed journal;
  bool durability = false;  // commits are released by a policy that may take its time
  std::array<bool, kFaultCount> enabled{};
  double fault_interval_s = 1;          // between two strikes, on average
  double message_fault_rate = 0;        // per message, for the faults that befall messages
  double resume_s = 0;                  // from a restart to the end of its pause
  double compute_s = 0.3;               // a worker's usual time for one ballot
  uint64_t heal_round = 0;              // from here on nothing goes wrong any more
  uint32_t able = 0;                    // the first so many workers can measure a held-out loss
  bool other_windows = false;           // every second of them on windows of its own
  std::optional<Round> nonfinite_from;  // every loss is NaN from this round on
  uint32_t digest_liars = 0;            // the first so many workers say one wrong digest, each time
  bool trace = false;                   // print what happens, for a failing seed

  bool on(Fault fault) const { return enabled[static_cast<size_t>(fault)]; }
  // One line with everything that was drawn.
  std::string Describe() const;
};
SimOptions DrawOptions(uint64_t seed);

// What happened, over any number of runs.
struct SimCounters {
  std::array<uint64_t, kFaultCount> struck{};
  uint64_t runs = 0, rounds = 0, events = 0;
  uint64_t steps = 0, rewinds = 0, rounds_without_step = 0;
  uint64_t races = 0;  // that were won
  // By workers that came when the run had let go of x0, and while it did.
  uint64_t fetches_without_x0 = 0, fetches_beside_x0_let_go = 0;
  uint64_t attempts_reopened = 0, abstentions = 0, late_chunks = 0, duplicate_chunks = 0;
  uint64_t stale_messages = 0, scalars_refused = 0, digest_mismatches = 0;
  uint64_t partial_commits = 0;  // fewer ballots than members in some chunk
  uint64_t uploads = 0, uploads_failed = 0, fetches = 0, fetches_in_pieces = 0, mismatches = 0;
  uint64_t refused_joins = 0, second_sessions = 0, ended_by_server = 0;
  uint64_t epochs = 0, backlogs_full = 0, diverged = 0;
  uint64_t evaluations = 0, evaluators_changed = 0, windows_changed = 0;
  uint64_t averages = 0, dense = 0;  // steps by counts, and with dense chunks
  uint64_t uncounted = 0;            // openings of weight 0
  // Of local steps, and those of them that ended before the last.
  uint64_t local_ballots = 0, steps_cut_short = 0;
  uint64_t silent_rounds = 0;  // of local trials
  uint64_t snapshots = 0, recoveries = 0, torn_writes = 0, lost_writes = 0;
  // By disks that lied of their syncs: recoveries without commits that were told, workers that were found
  // to be ahead of one, journals that had to be cut, and such of which nothing was left to go on with.
  uint64_t commits_lost = 0, workers_ahead = 0, journals_cut = 0, journals_lost = 0;

  // What must come about over enough seeds, by name.
  std::vector<std::pair<std::string, uint64_t>> Outcomes() const;
  std::string Describe() const;
};

}  // namespace signvote::sim
