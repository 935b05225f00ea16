#pragma once
// What a worker leaves of its replica: copies while it trains (--save-every), and the replica as it
// stands when the training is over, however that came (--save).

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/every.h"
#include "common/export_metadata.h"
#include "common/file_system.h"
#include "common/model_file.h"
#include "common/model_series.h"
#include "common/saved_run.h"
#include "worker/codec/replica_memory.h"
#include "worker/session/types.h"

namespace signvote {

// Ownership: does not own file system and clock, which must outlive it; keeps a copy of the replica
//            (4 bytes a coordinate; with x0 8 in the first one) while one is written.
// Threads:   thread-compatible: the training's thread. AfterRound() reads the replica there, and
//            leaves hashing and writing to a thread of its own.
// Failure:   AfterRound() fails only with what the replica's memory does; a copy for which there is no
//            memory, and what a disk does to one or to BeforeTransfer(), is told in the log. Final()
//            returns what the disk does, with the exit code kBadInput, and may be called again.
class ReplicaSaver {
 public:
  struct Options {
    std::string path;  // "": nothing is ever written
    Every every;
    uint32_t keep = 2;
    ModelFormat format;
    std::string config_json;
    // Session::run_state() of the replica that is saved; null: its files carry no run.
    std::function<std::string()> run_state;
  };
  ReplicaSaver(FileSystem* fs, Clock* clock, Options options);

  // The worker has joined; its replica stands at `round`. Copies are due from here on.
  void Begin(Round round);
  // A commit that the worker was told of, the last of those that its replica holds by then.
  void OnCommit(CommitKind kind, float stepsize) { stepsize_.Note(kind, stepsize); }
  enum class Asked { kNo, kYes };
  // The replica stands at `round`: writes a copy when it is due or asked for. REQUIRES: Begin().
  absl::Status AfterRound(const RunInfo& run, ReplicaMemory* replica, Round round, Asked asked);
  // A state is about to be written over the replica, which stands at `round`: that is saved as Final()
  // would, so that the end finds it there should the state not come. Waits for the disk, as long as it
  // takes; a copy in memory would need room that a worker of this model may not have.
  void BeforeTransfer(const RunInfo& run, ReplicaMemory* replica, Round round);
  // The round of what BeforeTransfer() saved last.
  std::optional<Round> before_transfer() const { return before_transfer_; }
  // The replica with this digest, under the path itself, behind the copies that are being written. Waits
  // for the disk.
  absl::Status Final(const RunInfo& run, ReplicaMemory* replica, Round round, uint64_t digest);

 private:
  std::map<std::string, std::string> Metadata(const RunInfo& run, Round round) const;
  // What a file of the replica at `round` says of its run, without digest and x0. nullopt: nothing.
  std::optional<SavedRun> RunOf(const RunInfo& run, Round round) const;
  // The file that says what the run started with, once for each run.
  absl::Status WriteX0(const RunInfo& run, const std::map<std::string, std::string>& metadata,
                       const ReadValues& read);

  FileSystem* const fs_;
  Clock* const clock_;
  const Options options_;
  std::optional<EverySchedule> schedule_;
  // Once it is written; the series' thread's while that is busy.
  std::optional<uint64_t> x0_digest_;
  std::optional<ModelSeries> series_;  // unless there is no path
  LastStepsize stepsize_;
  std::optional<Round> before_transfer_;
};

}  // namespace signvote
