#pragma once
// The file in which a worker's own state outlives its process: DIR/NAME.state, written behind the
// training now and then and at the end, and read when a worker of that name starts.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/every.h"
#include "common/file_system.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "worker/checkpoint/state_format.h"
#include "worker/checkpoint/worker_state.h"

namespace signvote {

// Ownership:  does not own file system and clock, which must outlive it. Keeps the state that it found
//             until Resume(), and a copy of the worker's while one is written.
// Threads:    methods: the training's thread, which waits for the disk in Open(), Final() and WriteFinal()
//             alone. Writing is the work of a thread of its own. stats(): any thread.
// Durability: the file is that of the last checkpoint that was written whole, also after a power cut.
// Failure:    what a disk does to a checkpoint on the way is told in the log, the file that is there
//             stays, and the next one is tried when it is due.
class WorkerCheckpoints {
 public:
  struct Options {
    std::string folder;
    std::string worker;  // its name
    Every every;
  };
  // Makes the folder and reads what is there. Errors have exit code kBadInput and name the file: a folder
  // that cannot be written; INVALID_ARGUMENT, DATA_LOSS, UNIMPLEMENTED: a file that is no state, is damaged, or
  // has another version.
  static absl::StatusOr<std::unique_ptr<WorkerCheckpoints>> Open(FileSystem* fs, Clock* clock,
                                                                 Options options);
  ~WorkerCheckpoints();
  WorkerCheckpoints(const WorkerCheckpoints&) = delete;
  WorkerCheckpoints& operator=(const WorkerCheckpoints&) = delete;

  // The worker has joined, its replica stands at `round`, and it has voted on nothing yet: gives it the
  // state that was there and says so in the log. One of another run is put aside, as
  // NAME.earlier-N.state; one of another model or direction is FAILED_PRECONDITION.
  absl::Status Resume(const StateOwner& owner, Round round, uint64_t main_round,
                      const GivenBack& given_back);
  // What the worker was told of a round that is over.
  void Note(Share share, uint64_t main_round);
  // Behind a round, the replica at `round`: copies the state when that is due. Fails only with what the
  // device does.
  absl::Status AfterRound(const StateOwner& owner, const KeptByCaller& kept, Round round);
  // The worker votes on nothing any more: the state as it is, behind what is being written. Waits for the
  // disk. A file that it went on from, and of no round since, stays as it is.
  absl::Status Final(const StateOwner& owner, const KeptByCaller& kept, Round round);
  // Again, after a Final() that the disk did not take.
  absl::Status WriteFinal();

  struct Stats {
    std::optional<Round> written;    // of the file; nullopt: this process has written none
    uint64_t written_total = 0;      // checkpoints
    uint64_t failed_total = 0;       // that a disk did not take
    std::optional<Resumed> resumed;  // nullopt: there was nothing to go on from
  };
  Stats stats() const ABSL_LOCKS_EXCLUDED(mu_);
  const std::string& path() const { return path_; }

 private:
  WorkerCheckpoints(FileSystem* fs, Clock* clock, Options options);

  absl::Status PutAside();
  absl::StatusOr<WorkerState> Take(const StateOwner& owner, const KeptByCaller& kept,
                                   Round round) const;
  absl::Status Write(const WorkerState& state) ABSL_LOCKS_EXCLUDED(mu_);
  void WaitForWriter() ABSL_LOCKS_EXCLUDED(mu_);
  void Run() ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after construction.
  FileSystem* const fs_;
  Clock* const clock_;
  const Options options_;
  const std::string path_;

  // The training's thread.
  std::optional<WorkerState> found_;  // until Resume()
  std::optional<EverySchedule> schedule_;
  Share share_;
  uint64_t main_round_ = 0;
  bool untouched_ = false;              // no round has changed what Resume() gave
  std::unique_ptr<WorkerState> final_;  // until it is written

  mutable Mutex mu_;
  CondVar changed_;
  std::unique_ptr<WorkerState> next_ ABSL_GUARDED_BY(mu_);  // until the thread has it
  bool writing_ ABSL_GUARDED_BY(mu_) = false;               // until it is done
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  Stats stats_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;  // after all that it uses
};

}  // namespace signvote
