#pragma once
// The journal of a run: every commit, and what changes between commits, on a disk before anybody is
// told. The second Durability. Format and rules: docs/journal_format.md.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/disk.h"
#include "common/mutex.h"
#include "server/commit/durability.h"
#include "server/journal/recovery.h"
#include "server/journal/segment_log.h"
#include "server/journal/state_book.h"
#include "signvote/v1/journal.pb.h"

namespace signvote::journal {

// When a commit is released, and what a crash may therefore take back.
enum class DurabilityMode : uint8_t {
  kSync,   // once it is on the disk. Nothing that was released is lost
  kGroup,  // once the operating system has it. A crash of the server loses nothing; a power cut what
           // was released since the last sync, which began at most kGroupInterval ago
  kNone,   // once it is queued, while less than kQueuedCommits are. A crash of the server loses
           // those; a power cut what the operating system has not written by itself
};
// As --durability names it.
std::string_view Words(DurabilityMode mode);

inline constexpr Duration kGroupInterval = std::chrono::milliseconds(200);
inline constexpr size_t kQueuedCommits = 8;

struct JournalOptions {
  DurabilityMode mode = DurabilityMode::kSync;
  uint64_t segment_bytes = 0;  // 0: kSegmentBytes
};

struct JournalStats {
  uint64_t written_bytes = 0;  // of records, by this process
  uint64_t commits = 0;        // written by this process
  uint64_t syncs = 0;
  double sync_seconds = 0;       // all of them together
  double last_sync_seconds = 0;  // the last one
};

// Ownership:  the disk and the clock must outlive it. Holds records until they are written.
// Threads:    one of its own, which writes and syncs; Durability's methods by the run's thread, the
//             rest by any. `failed` runs on its thread; `released` too, with kNone also inside
//             Append().
// Durability: see DurabilityMode. When Open() returns, the server's epoch is durable.
// Failure:    after a write or sync that failed nothing is released any more; `failed` is called
//             once. Nobody guesses what is on the disk: the next server reads it.
// Invariants: the first snapshot of a run is durable before anything that follows it is written.
class Journal final : public Durability {
 public:
  static absl::StatusOr<std::unique_ptr<Journal>> Open(Disk* disk, const JournalOptions& options,
                                                       const LogStart& start,
                                                       const Recovered& recovered, Clock* clock);
  ~Journal() override;

  // Who is told; begins the thread. Called once, before any of the methods below.
  using Failed = std::function<void(const absl::Status& status)>;
  void Start(Released released, Failed failed);
  // Writes and syncs what is queued, and ends the thread. Idempotent.
  void Stop();

  // ---- without a thread, as a simulation runs it
  // In place of Start(): nothing is written but by Turn() and Stop().
  void StartByTurns(Released released, Failed failed);
  // What the thread does whenever it wakes: writes what is queued, syncs by the policy, releases.
  void Turn();
  // The process has died: nothing is written any more.
  void Abandon();
  // When Turn() has something to do; nullopt: not before somebody says something.
  std::optional<Time> NextTurn() const;

  // ---- Durability
  void Append(std::shared_ptr<const CommitRecord> record) override;
  bool keeps_run() const override { return true; }
  void Begin(const v1::JournalHead& head,
             std::shared_ptr<const std::vector<float>> optimizer) override;
  void NoteName(const v1::JournalName& name) override;
  void NotePause(bool paused) override;
  void NoteChunk(Chunk chunk) override;
  void NoteState(std::shared_ptr<const v1::RunState> state,
                 std::shared_ptr<const std::vector<float>> optimizer,
                 std::vector<Voters> voters) override;

  // ---- snapshots
  StateBook* states() { return &states_; }
  // The run has begun, and everything waits for its first snapshot.
  bool needs_snapshot() const;
  // A snapshot of `round` is durable. `oldest`: of those that are kept; what only older ones would
  // need goes.
  void OnSnapshot(Round round, Round oldest);
  // Nothing can be released any more, for this reason.
  void Fail(const absl::Status& status);

  JournalStats stats() const;
  absl::Status status() const;  // OK until it failed

 private:
  struct Head {
    std::string bytes;
    uint64_t round_bytes = 0;
  };
  using Item = std::variant<Head, LogNote, Chunk, LogCommit>;

  Journal(std::unique_ptr<SegmentLog> log, const JournalOptions& options, bool has_snapshot,
          Clock* clock);
  void Push(Item item);
  void Loop();
  // Whether Turn() would do something now.
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TakeTurn(bool stop);
  absl::Status WriteAll(const std::vector<Item>& items);
  absl::Status Sync();
  void Release(Round next);

  // Constant after Start().
  const JournalOptions options_;
  Clock* const clock_;
  Released released_;
  Failed failed_;

  // The thread's, once it runs.
  const std::unique_ptr<SegmentLog> log_;
  std::optional<Time> unsynced_since_;  // the oldest commit that is written and not synced

  // Own synchronisation.
  StateBook states_;

  mutable Mutex mu_;
  CondVar changed_;
  std::vector<Item> queue_ ABSL_GUARDED_BY(mu_);
  size_t queued_commits_ ABSL_GUARDED_BY(mu_) = 0;
  Round released_to_ ABSL_GUARDED_BY(mu_);  // commits before it are
  bool has_snapshot_ ABSL_GUARDED_BY(mu_);
  bool begun_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<Round> oldest_ ABSL_GUARDED_BY(mu_);  // segments before it shall go
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  LogCommit next_ ABSL_GUARDED_BY(mu_);  // its state came, its record did not yet
  JournalStats stats_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
};

}  // namespace signvote::journal
