#pragma once
// Where a run stood behind its last commits, for the snapshots that are taken of it: the replica
// follows commits a little later, and a snapshot is of the round at which it stands.

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "signvote/v1/journal.pb.h"

namespace signvote::journal {

// What a commit takes to be read and checked, whatever its size.
inline constexpr Duration kReplayOverhead = std::chrono::microseconds(200);

// Threads:    thread-safe.
// Invariants: holds no more states than commits that the replica has not applied, and one.
class StateBook {
 public:
  struct Standing {
    v1::JournalHead head;                                 // run: as a snapshot says it
    std::shared_ptr<const std::vector<float>> optimizer;  // null: none
  };

  // The run as it begins, or is taken up.
  void Begin(const v1::JournalHead& head, std::shared_ptr<const std::vector<float>> optimizer);
  // Behind the commit before `next`.
  // A start has to apply what this one had to, as long as there is no newer snapshot.
  void OnRecovered(Duration took, uint64_t commits);
  void Add(Round next, std::shared_ptr<const v1::RunState> after,
           std::shared_ptr<const std::vector<float>> optimizer);
  // The replica holds all commits before `next`, the last of which took so long.
  void OnApplied(Round next, Duration took);
  // NOT_FOUND: it was let go of, or is not there yet.
  absl::StatusOr<Standing> At(Round round) const;
  // A snapshot of this round is durable.
  void OnSnapshot(Round round);

  // What it took to apply all commits behind the newest snapshot: about what a recovery plays.
  Duration replay() const;
  std::optional<Round> snapshot() const;
  Round applied() const;

 private:
  struct State {
    std::shared_ptr<const v1::RunState> after;
    std::shared_ptr<const std::vector<float>> optimizer;
  };

  mutable Mutex mu_;
  v1::JournalHead head_ ABSL_GUARDED_BY(mu_);
  std::map<Round, State> states_ ABSL_GUARDED_BY(mu_);  // by the next round to commit
  Round applied_ ABSL_GUARDED_BY(mu_);
  std::optional<Round> snapshot_ ABSL_GUARDED_BY(mu_);
  Duration replay_ ABSL_GUARDED_BY(mu_){};
};

}  // namespace signvote::journal
