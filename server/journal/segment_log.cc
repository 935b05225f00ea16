#include "server/journal/segment_log.h"

#include <algorithm>

#include "common/check.h"
#include "common/checksum.h"
#include "common/crash_point.h"
#include "common/status.h"
#include "server/journal/commit_message.h"

namespace signvote::journal {
namespace {

// Of a round beside its payload: headers, the state behind it.
constexpr uint64_t kRoundOverhead = uint64_t{4} << 10;
// Rounds that a segment has room for, however large they are.
constexpr uint64_t kRoundsMin = 4;

}  // namespace

absl::StatusOr<std::unique_ptr<SegmentLog>> SegmentLog::Open(Disk* disk, uint64_t segment_bytes,
                                                             const LogStart& start,
                                                             const Recovered& recovered) {
  std::unique_ptr<SegmentLog> log(
      new SegmentLog(disk, segment_bytes == 0 ? kSegmentBytes : segment_bytes, start, recovered));
  // Servers that begin and end in vain leave one segment, not one each. It is replaced at once, whole.
  if (recovered.last_is_bare) log->segments_.pop_back();
  // A crash may have left records that only the operating system has.
  if (!log->segments_.empty() && !recovered.last_is_bare) {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<DiskFile> last,
                              disk->Open(SegmentName(log->segments_.back().sequence)));
    SIGNVOTE_RETURN_IF_ERROR(last->Sync());
  }
  SIGNVOTE_RETURN_IF_ERROR(
      log->BeginSegment(recovered.last_is_bare ? recovered.before_last_end : recovered.last_end));
  return log;
}

SegmentLog::SegmentLog(Disk* disk, uint64_t segment_bytes, const LogStart& start,
                       const Recovered& recovered)
    : disk_(disk),
      segment_bytes_(segment_bytes),
      run_id_(start.run_id),
      epoch_(start.epoch),
      segments_(recovered.segments),
      spares_(recovered.spares),
      next_(start.round) {
  for (const uint64_t spare : spares_) last_spare_ = std::max(last_spare_, spare);
  if (!segments_.empty()) first_ = segments_.front().sequence;
}

absl::Status SegmentLog::Kept(absl::Status status) {
  if (!status.ok() && status_.ok()) status_ = status;
  return status;
}

// A file of its room with the header, durable under its name.
absl::StatusOr<std::unique_ptr<SegmentWriter>> SegmentLog::NextFile(const SegmentHeader& header) {
  const uint64_t bytes = std::max(segment_bytes_, kRoundsMin * round_bytes_);
  const std::string name = SegmentName(header.sequence);
  std::string made;
  std::unique_ptr<DiskFile> file;
  // The header of one that is used again is durable before it has its new name.
  while (!spares_.empty() && bytes == segment_bytes_ && file == nullptr) {
    made = SpareName(spares_.back());
    spares_.pop_back();
    absl::StatusOr<std::unique_ptr<DiskFile>> spare = disk_->Open(made);
    if (spare.ok()) file = *std::move(spare);
  }
  if (file == nullptr) {
    made = SpareName(++last_spare_);
    SIGNVOTE_ASSIGN_OR_RETURN(file, disk_->Create(made, bytes));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<SegmentWriter> writer,
                            SegmentWriter::Start(std::move(file), header));
  CrashPoint("segment.made");
  SIGNVOTE_RETURN_IF_ERROR(disk_->Rename(made, name));
  CrashPoint("segment.named");
  SIGNVOTE_RETURN_IF_ERROR(disk_->SyncFolder());
  return writer;
}

absl::Status SegmentLog::BeginSegment(uint64_t previous_end) {
  const uint64_t sequence = segments_.empty() ? first_ : segments_.back().sequence + 1;
  const SegmentHeader header = MakeSegmentHeader(run_id_, sequence, epoch_, next_, previous_end);
  SIGNVOTE_ASSIGN_OR_RETURN(segment_, NextFile(header));
  segments_.push_back({.sequence = sequence,
                       .epoch = epoch_,
                       .first_round = next_,
                       .file_bytes = std::max(segment_bytes_, kRoundsMin * round_bytes_)});
  if (head_.empty()) return absl::OkStatus();
  SIGNVOTE_RETURN_IF_ERROR(segment_->Append(RecordType::kHead, next_, head_));
  return segment_->Sync();
}

absl::Status SegmentLog::Append(RecordType type, Round round, std::span<const std::byte> prefix,
                                std::span<const std::byte> payload) {
  const uint64_t before = segment_->bytes();
  SIGNVOTE_RETURN_IF_ERROR(Kept(segment_->Append(type, round, prefix, payload)));
  written_bytes_ += segment_->bytes() - before;
  return absl::OkStatus();
}

// A round begins: in the next segment, when this one might not have room for all of it.
absl::Status SegmentLog::BeforeRound(Round round) {
  if (!status_.ok()) return status_;
  if (open_ == round) return absl::OkStatus();
  SIGNVOTE_CHECK(!open_.has_value() && round == next_);
  if (segment_->bytes() + round_bytes_ > segments_.back().file_bytes &&
      segment_->bytes() > sizeof(SegmentHeader)) {
    SIGNVOTE_RETURN_IF_ERROR(Kept(segment_->Sync()));
    SIGNVOTE_RETURN_IF_ERROR(Kept(BeginSegment(segment_->bytes())));
  }
  open_ = round;
  open_begin_ = segment_->bytes();
  return absl::OkStatus();
}

absl::Status SegmentLog::Begin(std::string head, uint64_t round_bytes) {
  if (!status_.ok()) return status_;
  head_ = std::move(head);
  round_bytes_ = std::max(round_bytes_, round_bytes + kRoundOverhead);
  return Append(RecordType::kHead, next_, {}, std::as_bytes(std::span(head_.data(), head_.size())));
}

absl::Status SegmentLog::Write(const LogNote& note) {
  if (!status_.ok()) return status_;
  return Append(note.type, next_, {},
                std::as_bytes(std::span(note.payload.data(), note.payload.size())));
}

absl::Status SegmentLog::WriteChunk(Round round, Attempt attempt, ChunkIndex k, const ChunkSum& sum,
                                    std::span<const uint8_t> payload) {
  const ChunkHeader header{
      .attempt = attempt.value(), .chunk = k.value(), .counted = sum.counted, .reserved = 0};
  SIGNVOTE_RETURN_IF_ERROR(Append(RecordType::kChunk, round, std::as_bytes(std::span(&header, 1)),
                                  std::as_bytes(payload)));
  open_chunks_[{attempt.value(), k.value()}] = sum.checksum;
  return absl::OkStatus();
}

absl::Status SegmentLog::Write(const Durability::Chunk& chunk) {
  SIGNVOTE_RETURN_IF_ERROR(BeforeRound(chunk.round));
  return WriteChunk(chunk.round, chunk.attempt, chunk.chunk, chunk.sum, chunk.payload);
}

absl::Status SegmentLog::Write(const LogCommit& commit) {
  const CommitRecord& record = *commit.record;
  SIGNVOTE_RETURN_IF_ERROR(BeforeRound(record.round));
  for (uint32_t k = 0; k < record.chunks.size(); ++k) {
    const auto written = open_chunks_.find({record.attempt.value(), k});
    if (written != open_chunks_.end() && written->second == record.chunks[k].checksum) continue;
    SIGNVOTE_RETURN_IF_ERROR(WriteChunk(record.round, record.attempt, ChunkIndex(k),
                                        record.chunks[k], record.Chunk(ChunkIndex(k))));
  }
  if (commit.optimizer != nullptr && !commit.optimizer->empty()) {
    SIGNVOTE_RETURN_IF_ERROR(Append(RecordType::kOptimizer, record.round, {},
                                    std::as_bytes(std::span(*commit.optimizer))));
  }
  v1::JournalCommit message;
  FillCommit(record, &message);
  if (commit.after != nullptr) *message.mutable_after() = *commit.after;
  for (const Durability::Voters& voters : commit.voters) {
    v1::JournalVoters& of = *message.add_voters_of();
    of.set_chunks(voters.chunks);
    of.mutable_ids()->Assign(voters.workers.begin(), voters.workers.end());
  }
  const std::string payload = message.SerializeAsString();
  SIGNVOTE_RETURN_IF_ERROR(Append(RecordType::kCommit, record.round, {},
                                  std::as_bytes(std::span(payload.data(), payload.size()))));
  round_bytes_ = std::max(round_bytes_, segment_->bytes() - open_begin_);
  open_.reset();
  open_chunks_.clear();
  next_ = record.round.next();
  return absl::OkStatus();
}

absl::Status SegmentLog::Sync() {
  if (!status_.ok()) return status_;
  return Kept(segment_->Sync());
}

absl::Status SegmentLog::DropBefore(Round oldest) {
  if (!status_.ok()) return status_;
  // The one with the commit before `oldest` stays, and all behind it: what changed behind that commit
  // counts.
  bool dropped = false;
  while (segments_.size() > 1 && segments_[1].first_round < oldest) {
    const SegmentInfo& first = segments_.front();
    const std::string name = SegmentName(first.sequence);
    if (spares_.size() < kSparesMax && first.file_bytes == segment_bytes_) {
      const std::string spare = SpareName(++last_spare_);
      SIGNVOTE_RETURN_IF_ERROR(Kept(disk_->Rename(name, spare)));
      spares_.push_back(last_spare_);
    } else {
      SIGNVOTE_RETURN_IF_ERROR(Kept(disk_->Remove(name)));
    }
    CrashPoint("segment.dropped");
    segments_.erase(segments_.begin());
    dropped = true;
  }
  return dropped ? Kept(disk_->SyncFolder()) : absl::OkStatus();
}

}  // namespace signvote::journal
