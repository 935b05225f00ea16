#pragma once
// What a journal's files say of the run: the newest snapshot that is whole, and the commits behind it
// played on it. Exact to the bit.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/disk.h"
#include "common/ids.h"
#include "common/layout.h"
#include "server/commit/commit_record.h"
#include "server/journal/segment_reader.h"
#include "signvote/v1/journal.pb.h"

namespace signvote::journal {

struct SegmentInfo {
  uint64_t sequence = 0;
  Epoch epoch;
  Round first_round;
  uint64_t file_bytes = 0;
};

// What recovery came across.
struct RecoveryReport {
  std::optional<Round> snapshot;      // that was played on
  std::vector<std::string> unusable;  // newer snapshots that were not whole, each with the reason
  uint64_t commits = 0;               // played
  uint64_t payload_bytes = 0;         // of these
  double seconds = 0;                 // of all of it
  double apply_seconds = 0;           // of the commits alone
  uint64_t torn_tails = 0;            // writes that were under way when a server ended
  uint64_t void_records = 0;          // of rounds that were not committed
};

struct Recovered {
  std::optional<RunId> run_id;  // nullopt: the folder has no journal yet
  std::vector<SegmentInfo> segments;
  std::vector<Round> snapshots;  // that are whole, or older than the newest that is: newest first
  uint64_t last_end = 0;         // of the last segment's records
  // The last segment says nothing but that a server began: its place is the next one's. And where the
  // records of the one before it end.
  bool last_is_bare = false;
  uint64_t before_last_end = 0;
  Epoch last_epoch;
  std::vector<uint64_t> spares;  // numbers of segments' files that wait for their next use

  // Where the run stands. Without `begun` it has no parameters, and of `head.run` there are run id,
  // names, next_worker_id, paused and begun.
  bool begun = false;
  v1::JournalHead head;
  Layout layout;
  std::shared_ptr<std::vector<float>> x, x0;  // x0 null: not kept
  std::vector<float> optimizer;
  // The last commits, in order; as many as RecoveryOptions says.
  std::vector<std::shared_ptr<const CommitRecord>> recent;

  RecoveryReport report;
  Round round() const { return Round(head.run().engine().round()); }
};

struct RecoveryOptions {
  // The run as it stood when all commits before this round were made; nullopt: all of them.
  std::optional<Round> until;
  uint64_t recent_bytes = 0;  // of payload that Recovered::recent may have
  uint64_t recent_max = 0;    // commits
  // Called now and then with the round that was played last; null: nobody is told.
  std::function<void(Round round)> progress;
};

// DATA_LOSS: damage that is no torn tail, with file, offset and remedy; a gap in the commits; no
// snapshot that is whole. NOT_FOUND: `until` is a round that the journal does not cover, or not yet.
// Changes no file.
absl::StatusOr<Recovered> Recover(Disk* disk, const RecoveryOptions& options, Clock* clock);

// ---- parts of it, for those who look at a journal -----------------------------------------------

// The segments in order, each with where its records end as the next one says. DATA_LOSS: one is
// missing, or of another run. `headers`: of the same.
struct SegmentFile {
  std::string name;
  SegmentInfo info;
  RunId run_id;
  uint64_t previous_end = 0;    // where those of the segment before it end
  std::optional<uint64_t> end;  // nullopt: the last one
};
absl::StatusOr<std::vector<SegmentFile>> ListSegments(Disk* disk);
// The same of the segments up to the first that is damaged, missing, or does not follow the one before it.
struct SegmentList {
  std::vector<SegmentFile> segments;
  std::vector<std::string> rest;  // names from there on
  absl::Status why;               // DATA_LOSS: what is wrong there; OK: nothing
};
// `names`: of segments, in order.
absl::StatusOr<SegmentList> ReadSegments(Disk* disk, std::span<const std::string> names);
absl::StatusOr<std::vector<std::string>> SegmentNames(Disk* disk);
// The first segment that has to be read behind a snapshot: that with the commit before it.
size_t FirstNeeded(const std::vector<SegmentFile>& segments, Round snapshot);

// Reads every record of the segments from `first` on, in order. What `visit` returns that is not OK ends
// it. REQUIRES: first ≤ segments.size().
struct Visited {
  const SegmentFile* segment = nullptr;
  SegmentReader::Record record;
};
using Visit = std::function<absl::Status(const Visited& visited)>;
struct ScanEnd {
  uint64_t last_end = 0;
  uint64_t torn_tails = 0;
};
absl::StatusOr<ScanEnd> ScanSegments(Disk* disk, const std::vector<SegmentFile>& segments,
                                     size_t first, const Visit& visit);

}  // namespace signvote::journal
