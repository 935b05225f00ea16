#pragma once
// The journal of a simulated server: the product's Journal, Snapshotter and recovery over a simulated
// disk, each turn of their threads an event of the timeline.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/journal/journal.h"
#include "server/journal/snapshotter.h"
#include "server/replica/applier.h"
#include "server/run/run_state.h"
#include "tests/sim/sim_disk.h"
#include "tests/sim/world.h"

namespace signvote::sim {

// Outlives the server's processes, as a disk does.
class SimJournal {
 public:
  // What a process hears, each as an event of its own.
  struct Hooks {
    std::function<void(Round round)> released;
    std::function<void(const absl::Status& status)> failed;
    std::function<void()> killed;  // in the middle of a write
  };

  explicit SimJournal(World* world);

  // A process begins. The first one makes the folder; a later one recovers the run from it.
  // `state.run_id`: of a run that is not there yet.
  absl::StatusOr<run::RunState> Open(run::RunState state, Hooks hooks);
  // Cuts the journal at its damage, as an operator does (signvote journal truncate). REQUIRES: Open()
  // found it damaged.
  absl::Status Cut();
  // There is a replica that snapshots are taken of.
  void SetApplier(Applier* applier);
  // Something was said to the journal, or applied: its threads may have work.
  void Look();
  void OnApplied(const Applied& applied);

  // All that was said is written and synced, as a server does that ends in good order.
  void Finish();
  // The process is gone, with what it had not written; the disk may lose what was not synced.
  void Die(SimDisk::Restart how);
  // It will be, once so many further bytes are written.
  void DieInWrite(uint64_t bytes, SimDisk::Restart how);

  journal::Journal* journal() { return journal_.get(); }
  // A run stands on its first snapshot: before that nothing is promised.
  bool stands() const { return snapshots_ > 0; }
  SimDisk& disk() { return disk_; }
  const SimDisk& disk() const { return disk_; }
  uint64_t snapshots() const { return snapshots_; }
  uint64_t recoveries() const { return recoveries_; }

 private:
  void Turn();

  World* const world_;
  SimDisk disk_;
  SimDisk::Restart restart_ = SimDisk::Restart::kProcess;
  uint64_t snapshots_ = 0, recoveries_ = 0;

  // Of the process.
  uint64_t life_ = 0;
  Hooks hooks_;
  Applier* applier_ = nullptr;
  std::unique_ptr<journal::Journal> journal_;
  std::unique_ptr<journal::Snapshotter> snapshotter_;
  bool looks_ = false;
};

}  // namespace signvote::sim
