#pragma once
// The segments of a journal as its one writer sees them: records go to the last one, a full one is
// followed by the next, those that nobody needs any more are used again. Without a thread:
// journal.h has that, and tests/sim drives this.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/disk.h"
#include "common/ids.h"
#include "server/commit/durability.h"
#include "server/journal/recovery.h"
#include "server/journal/segment_writer.h"
#include "signvote/v1/journal.pb.h"

namespace signvote::journal {

// A record beside chunks and commits.
struct LogNote {
  RecordType type = RecordType::kName;
  std::string payload;
};
// A commit with what is behind it.
struct LogCommit {
  std::shared_ptr<const CommitRecord> record;
  std::shared_ptr<const v1::RunState> after;
  std::shared_ptr<const std::vector<float>> optimizer;  // null: none
  std::vector<Durability::Voters> voters;               // empty: of kinds rewind and none
};

// Where a server begins to write.
struct LogStart {
  RunId run_id;
  Epoch epoch;
  Round round;  // the next to commit
};

inline constexpr uint64_t kSegmentBytes = uint64_t{64} << 20;
// Dropped segments that wait for their next use.
inline constexpr size_t kSparesMax = 2;

// Ownership:  the disk must outlive it.
// Threads:    not thread-safe.
// Durability: what Write() took is durable once a later Sync() returned OK. Open() returns once its
//             own segment is.
// Failure:    after any status that is not OK nobody knows what is on the disk: every later call
//             returns that status.
// Invariants: a round lies in one segment; the records of a segment are durable before the next one
//             says where they end.
class SegmentLog {
 public:
  // Begins a segment of its own behind what `recovered` found. `segment_bytes`: 0, kSegmentBytes; a
  // segment is never smaller than four of the largest rounds so far.
  static absl::StatusOr<std::unique_ptr<SegmentLog>> Open(Disk* disk, uint64_t segment_bytes,
                                                          const LogStart& start,
                                                          const Recovered& recovered);

  // A HEAD record now, and at the front of each segment from now on. `round_bytes`: of a commit's
  // payload, at most.
  absl::Status Begin(std::string head, uint64_t round_bytes);
  absl::Status Write(const LogNote& note);
  absl::Status Write(const Durability::Chunk& chunk);
  // With those chunks of its payload that were not written yet.
  absl::Status Write(const LogCommit& commit);
  // What was written may begin its way to the disk.
  void StartWriteback() { segment_->StartWriteback(); }
  absl::Status Sync();
  // No snapshot that is kept is older than `oldest`: what only such a one would need goes.
  absl::Status DropBefore(Round oldest);

  bool synced() const { return segment_->synced() == segment_->bytes(); }
  Round next() const { return next_; }  // commits before it are written
  uint64_t written_bytes() const { return written_bytes_; }

 private:
  SegmentLog(Disk* disk, uint64_t segment_bytes, const LogStart& start, const Recovered& recovered);
  absl::StatusOr<std::unique_ptr<SegmentWriter>> NextFile(const SegmentHeader& header);
  absl::Status BeginSegment(uint64_t previous_end);
  absl::Status BeforeRound(Round round);
  absl::Status Append(RecordType type, Round round, std::span<const std::byte> prefix,
                      std::span<const std::byte> payload);
  absl::Status WriteChunk(Round round, Attempt attempt, ChunkIndex k, const ChunkSum& sum,
                          std::span<const uint8_t> payload);
  absl::Status Kept(absl::Status status);

  // Constant after construction.
  Disk* const disk_;
  const uint64_t segment_bytes_;
  const RunId run_id_;
  const Epoch epoch_;

  std::unique_ptr<SegmentWriter> segment_;
  std::vector<SegmentInfo> segments_;  // on the disk; the last one is segment_
  uint64_t first_ = 1;                 // sequence of the first of them
  std::vector<uint64_t> spares_;
  uint64_t last_spare_ = 0;
  std::string head_;  // "": the run has not begun
  // Of the round of which something is written and no commit yet.
  std::optional<Round> open_;
  std::map<std::pair<uint32_t, uint32_t>, uint64_t>
      open_chunks_;           // checksums, by attempt and chunk
  uint64_t open_begin_ = 0;   // in the segment
  uint64_t round_bytes_ = 0;  // the most that a round has taken, or may take
  Round next_;
  uint64_t written_bytes_ = 0;
  absl::Status status_;  // OK until the first failure
};

}  // namespace signvote::journal
