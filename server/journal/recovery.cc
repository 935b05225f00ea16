#include "server/journal/recovery.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/crash_point.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/memory_reserve.h"
#include "common/status.h"
#include "server/journal/commit_message.h"
#include "server/journal/head.h"
#include "server/journal/snapshot.h"
#include "server/replica/move_parameters.h"

namespace signvote::journal {
namespace {

absl::Status DataLoss(const std::string& text) {
  return WithExitCode(absl::DataLossError(text), ExitCode::kBadInput);
}

absl::Status At(const Visited& v, std::string_view what) {
  return DataLoss(absl::StrCat(v.segment->name, ", byte ", v.record.offset, " (",
                               ToAbsl(Words(v.record.type)), "): ", ToAbsl(what)));
}

// Plays the records of a journal on a snapshot.
class Player {
 public:
  Player(const RecoveryOptions& options, Clock* clock, Recovered* out)
      : options_(options), clock_(clock), out_(*out) {}

  // The snapshot is in `out`.
  absl::Status Begin() {
    if (!out_.begun) return absl::OkStatus();
    absl::StatusOr<PayloadPlan> plan = PlanFrom(out_.head, out_.layout.coordinates());
    if (!plan.ok())
      return DataLoss(absl::StrCat("the snapshot of round ", out_.round().value(), ": ",
                                   plan.status().message()));
    plan_ = *std::move(plan);
    next_ = out_.round();
    // What changes between commits counts from the snapshot on.
    behind_ = next_ == Round(0);
    return absl::OkStatus();
  }

  bool done() const { return options_.until.has_value() && out_.begun && next_ >= *options_.until; }
  Round next() const { return next_; }

  // Also one without a record tells of a server.
  void NoteEpoch(const SegmentFile& segment) {
    v1::RunState& run = *out_.head.mutable_run();
    const uint64_t epoch = segment.info.epoch.value();
    const uint64_t last = run.begun_size() == 0 ? 0 : run.begun(run.begun_size() - 1).epoch();
    if (epoch <= last) return;
    v1::EpochBegun& begun = *run.add_begun();
    begun.set_epoch(epoch);
    begun.set_round(segment.info.first_round.value());
  }

  absl::Status Take(const Visited& v) {
    // All of such a segment is: the commit before it may have gone with a tail that was cut off.
    if (v.segment->info.first_round >= next_) behind_ = true;
    if (done()) return absl::OkStatus();
    switch (v.record.type) {
      case RecordType::kHead:
        return TakeHead(v);
      case RecordType::kName:
        return TakeName(v);
      case RecordType::kPause:
        return TakePause(v);
      case RecordType::kChunk:
        return TakeChunk(v);
      case RecordType::kOptimizer:
        return TakeOptimizer(v);
      case RecordType::kCommit:
        return TakeCommit(v);
    }
    return absl::OkStatus();
  }

  void Finish() { out_.recent = {recent_.begin(), recent_.end()}; }

  // What a server left open is void. Called where its last segment ends, and at the end.
  void DropOpenRound() {
    out_.report.void_records += chunks_.size();
    chunks_.clear();
    optimizer_.clear();
  }

 private:
  absl::Status TakeHead(const Visited& v) {
    v1::JournalHead head;
    if (!head.ParseFromArray(v.record.payload.data(), static_cast<int>(v.record.payload.size())))
      return At(v, "is not a JournalHead message");
    // It is written once the first snapshot is durable.
    if (!out_.begun) {
      return At(v,
                "the run has begun, and no snapshot of it is whole; restore the journal's folder "
                "from a copy of it");
    }
    absl::StatusOr<Layout> layout = LayoutFrom(head.run());
    if (!layout.ok() || !(*layout == out_.layout)) return At(v, "is of another layout");
    const absl::StatusOr<PayloadPlan> plan = PlanFrom(head, out_.layout.coordinates());
    if (!plan.ok()) return At(v, ToStd(plan.status().message()));
    // A server with other flags may cut the commits that follow in another way.
    plan_ = *plan;
    out_.head.set_chunk_coordinates(head.chunk_coordinates());
    out_.head.set_ballots_max(head.ballots_max());
    *out_.head.mutable_ranges() = head.ranges();
    return absl::OkStatus();
  }

  absl::Status TakeName(const Visited& v) {
    v1::JournalName message;
    if (!message.ParseFromArray(v.record.payload.data(),
                                static_cast<int>(v.record.payload.size()))) {
      return At(v, "is not a JournalName message");
    }
    if (!behind_) return absl::OkStatus();
    v1::RunState& run = *out_.head.mutable_run();
    run.set_next_worker_id(std::max(run.next_worker_id(), message.next_worker_id()));
    auto& names = *run.mutable_names();
    const auto place =
        std::lower_bound(names.begin(), names.end(), message.name().id(),
                         [](const v1::KnownName& known, uint32_t id) { return known.id() < id; });
    if (place != names.end() && place->id() == message.name().id()) {
      *place = message.name();
    } else {
      const auto index = place - names.begin();
      *names.Add() = message.name();
      std::rotate(names.begin() + index, names.end() - 1, names.end());
    }
    // Who was evicted is so for the engine as well.
    for (v1::EngineState::Worker& worker : *run.mutable_engine()->mutable_workers())
      if (worker.id() == message.name().id() && message.name().evicted()) worker.set_evicted(true);
    return absl::OkStatus();
  }

  absl::Status TakePause(const Visited& v) {
    v1::JournalPause message;
    if (!message.ParseFromArray(v.record.payload.data(),
                                static_cast<int>(v.record.payload.size()))) {
      return At(v, "is not a JournalPause message");
    }
    if (!behind_) return absl::OkStatus();
    out_.head.mutable_run()->set_paused(message.paused());
    out_.head.mutable_run()->mutable_engine()->set_paused(message.paused());
    return absl::OkStatus();
  }

  absl::Status TakeChunk(const Visited& v) {
    if (v.record.payload.size() < sizeof(ChunkHeader)) return At(v, "is too short");
    if (!out_.begun || v.record.round < next_) return absl::OkStatus();
    ChunkHeader header;
    std::memcpy(&header, v.record.payload.data(), sizeof(header));
    if (header.chunk >= plan_.chunks()) return At(v, "is of a chunk that the layout has not");
    chunks_[{header.attempt, header.chunk}] = {header.counted,
                                               v.record.payload.subspan(sizeof(header))};
    return absl::OkStatus();
  }

  absl::Status TakeOptimizer(const Visited& v) {
    if (v.record.payload.size() % sizeof(float) != 0) return At(v, "is no row of fp32");
    if (!out_.begun || v.record.round < next_) return absl::OkStatus();
    optimizer_.resize(v.record.payload.size() / sizeof(float));
    if (!optimizer_.empty())
      std::memcpy(optimizer_.data(), v.record.payload.data(), v.record.payload.size());
    return absl::OkStatus();
  }

  absl::StatusOr<std::shared_ptr<const uint8_t>> Payload(const Visited& v,
                                                         const v1::JournalCommit& commit) {
    if (commit.kind() != static_cast<uint32_t>(CommitKind::kStep))
      return std::shared_ptr<const uint8_t>();
    if (static_cast<uint64_t>(commit.counted_size()) != plan_.chunks() ||
        commit.checksums_size() != commit.counted_size()) {
      return At(v, "has counts of other chunks than the layout's");
    }
    const std::shared_ptr<uint8_t> bytes(new uint8_t[plan_.TotalBytes()](),
                                         std::default_delete<uint8_t[]>());
    for (uint32_t k = 0; k < plan_.chunks(); ++k) {
      const auto chunk = chunks_.find({commit.attempt(), k});
      if (chunk == chunks_.end())
        return At(v, absl::StrCat("the payload of chunk ", k, " is missing"));
      const uint32_t counted = commit.counted(static_cast<int>(k));
      const std::span<const std::byte> data = chunk->second.bytes;
      if (chunk->second.counted != counted || counted == 0 || counted > plan_.ballots_max() ||
          data.size() != plan_.Bytes(ChunkIndex(k), counted) ||
          Xxh3(data) != commit.checksums(static_cast<int>(k))) {
        return At(v, absl::StrCat("the payload of chunk ", k, " is another one's"));
      }
      std::memcpy(bytes.get() + plan_.Offset(ChunkIndex(k)), data.data(), data.size());
    }
    return bytes;
  }

  absl::Status TakeCommit(const Visited& v) {
    v1::JournalCommit message;
    if (!message.ParseFromArray(v.record.payload.data(),
                                static_cast<int>(v.record.payload.size()))) {
      return At(v, "is not a JournalCommit message");
    }
    if (!out_.begun) {
      return At(v,
                "there are commits, and no snapshot that is whole; restore the journal's folder "
                "from a copy of it");
    }
    if (v.record.round < next_) {
      // Of the snapshot itself: what changed behind it counts.
      if (v.record.round.next() == next_) behind_ = true;
      return absl::OkStatus();
    }
    if (v.record.round != next_)
      return At(v, absl::StrCat("is of round ", v.record.round.value(), ", and round ",
                                next_.value(), " is missing before it"));
    SIGNVOTE_ASSIGN_OR_RETURN(const std::shared_ptr<const uint8_t> payload, Payload(v, message));
    absl::StatusOr<std::shared_ptr<const CommitRecord>> record =
        CommitFrom(message, next_, plan_, out_.layout.tensors().size(), payload);
    if (!record.ok()) return At(v, ToStd(record.status().message()));
    if (message.after().engine().round() != next_.value() + 1)
      return At(v, "says of another round where the run stands behind it");
    SIGNVOTE_RETURN_IF_ERROR(Apply(v, **record));
    MoveOn(message.after(), out_.head.mutable_run());
    out_.optimizer = std::exchange(optimizer_, {});
    Keep(*std::move(record));
    // The chunks of attempts that came to nothing are void with them.
    out_.report.void_records += chunks_.size() - static_cast<size_t>(message.counted_size());
    chunks_.clear();
    ++next_;
    behind_ = true;
    ++out_.report.commits;
    CrashPoint("recovery.commit-played");
    if (options_.progress) options_.progress(next_);
    return absl::OkStatus();
  }

  absl::Status Apply(const Visited& v, const CommitRecord& record) {
    const bool needs_x0 = record.kind == CommitKind::kRewind || record.rho != 1.0f;
    if (needs_x0 && out_.x0 == nullptr) return At(v, "needs x0, which the snapshot does not have");
    const Time begin = clock_->Now();
    MoveParameters(out_.layout, record, 0, out_.layout.coordinates(),
                   out_.x0 == nullptr ? nullptr : out_.x0->data(), out_.x->data());
    out_.report.apply_seconds += ToSeconds(clock_->Now() - begin);
    out_.report.payload_bytes += record.payload_bytes;
    return absl::OkStatus();
  }

  void Keep(std::shared_ptr<const CommitRecord> record) {
    recent_bytes_ += record->payload_bytes;
    recent_.push_back(std::move(record));
    while (!recent_.empty() &&
           (recent_.size() > options_.recent_max || recent_bytes_ > options_.recent_bytes)) {
      recent_bytes_ -= recent_.front()->payload_bytes;
      recent_.pop_front();
    }
  }

  struct Chunk {
    uint32_t counted = 0;
    std::span<const std::byte> bytes;  // of the segment that is being read
  };

  const RecoveryOptions& options_;
  Clock* const clock_;
  Recovered& out_;
  PayloadPlan plan_;
  Round next_;
  bool behind_ = true;
  std::map<std::pair<uint32_t, uint32_t>, Chunk> chunks_;  // by attempt and chunk
  std::vector<float> optimizer_;
  std::deque<std::shared_ptr<const CommitRecord>> recent_;
  uint64_t recent_bytes_ = 0;
};

// The newest snapshot that is whole, and not behind `until`.
absl::Status LoadSnapshot(Disk* disk, std::optional<Round> until, Recovered* out) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<Round> rounds, ListSnapshots(disk));
  for (const Round round : rounds) {
    if (until.has_value() && round > *until) continue;
    if (out->begun) {
      out->snapshots.push_back(round);
      continue;
    }
    absl::StatusOr<Snapshot> snapshot = ReadSnapshot(disk, round);
    if (!snapshot.ok()) {
      // Too little memory is no reason to play an older one.
      if (absl::IsResourceExhausted(snapshot.status())) return snapshot.status();
      out->report.unusable.push_back(Describe(snapshot.status()));
      continue;
    }
    out->begun = true;
    out->head = std::move(snapshot->head);
    out->layout = std::move(snapshot->layout);
    out->x = std::move(snapshot->x);
    out->x0 = std::move(snapshot->x0);
    out->optimizer = std::move(snapshot->optimizer);
    out->report.snapshot = round;
    out->snapshots.push_back(round);
  }
  return absl::OkStatus();
}

}  // namespace

size_t FirstNeeded(const std::vector<SegmentFile>& segments, Round snapshot) {
  size_t first = 0;
  while (first + 1 < segments.size() && segments[first + 1].info.first_round < snapshot) ++first;
  return first;
}

absl::StatusOr<std::vector<std::string>> SegmentNames(Disk* disk) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<DiskEntry> entries, disk->List());
  std::vector<std::string> names;
  for (const DiskEntry& entry : entries)
    if (SegmentOf(entry.name).has_value()) names.push_back(entry.name);
  return names;
}

namespace {

// What is wrong with a segment behind `before`, if there is one.
absl::Status CheckSegment(const std::string& name, const SegmentFile& segment, uint64_t said,
                          const SegmentFile* before) {
  if (said != segment.info.sequence) return DataLoss(absl::StrCat(name, " is segment ", said));
  if (before == nullptr) return absl::OkStatus();
  if (before->info.sequence + 1 != said)
    return DataLoss(absl::StrCat(SegmentName(before->info.sequence + 1), " is missing"));
  if (before->run_id != segment.run_id)
    return DataLoss(absl::StrCat(name, " is of another run than ", before->name));
  if (segment.info.epoch < before->info.epoch ||
      segment.info.first_round < before->info.first_round)
    return DataLoss(absl::StrCat(name, " goes back behind ", before->name));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SegmentList> ReadSegments(Disk* disk, std::span<const std::string> names) {
  SegmentList list;
  for (size_t i = 0; i < names.size(); ++i) {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> map, disk->Map(names[i]));
    const absl::StatusOr<SegmentHeader> header = ReadSegmentHeader(map->data());
    if (absl::IsUnimplemented(header.status())) {
      return WithExitCode(
          absl::UnimplementedError(absl::StrCat(names[i], " ", header.status().message())),
          ExitCode::kBadInput);
    }
    SegmentFile segment{.name = names[i]};
    if (header.ok()) {
      segment.info = {.sequence = *SegmentOf(names[i]),
                      .epoch = Epoch(header->epoch),
                      .first_round = Round(header->first_round),
                      .file_bytes = map->data().size()};
      segment.run_id = *RunId::FromBytes({header->run_id, sizeof(header->run_id)});
      segment.previous_end = header->previous_end;
      list.why = CheckSegment(names[i], segment, header->sequence,
                              list.segments.empty() ? nullptr : &list.segments.back());
    } else {
      list.why = DataLoss(absl::StrCat(names[i], " ", header.status().message()));
    }
    if (!list.why.ok()) {
      list.why = DataLoss(absl::StrCat(
          list.why.message(),
          "; restore the journal's folder from a copy of it, or give up the rounds from there on: "
          "signvote journal truncate DIR"));
      list.rest.assign(names.begin() + static_cast<std::ptrdiff_t>(i), names.end());
      return list;
    }
    if (!list.segments.empty()) list.segments.back().end = segment.previous_end;
    list.segments.push_back(std::move(segment));
  }
  return list;
}

absl::StatusOr<std::vector<SegmentFile>> ListSegments(Disk* disk) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<std::string> names, SegmentNames(disk));
  SIGNVOTE_ASSIGN_OR_RETURN(SegmentList list, ReadSegments(disk, names));
  if (!list.why.ok()) return list.why;
  return std::move(list.segments);
}

absl::StatusOr<ScanEnd> ScanSegments(Disk* disk, const std::vector<SegmentFile>& segments,
                                     size_t first, const Visit& visit) {
  ScanEnd end;
  for (size_t i = first; i < segments.size(); ++i) {
    const SegmentFile& segment = segments[i];
    SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> map, disk->Map(segment.name));
    SIGNVOTE_ASSIGN_OR_RETURN(SegmentReader reader,
                              SegmentReader::Open(segment.name, map->data(), segment.end));
    while (true) {
      SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<SegmentReader::Record> record, reader.Next());
      if (!record.has_value()) break;
      SIGNVOTE_RETURN_IF_ERROR(visit({.segment = &segment, .record = *record}));
    }
    end.last_end = reader.end().offset;
    if (reader.end().torn) ++end.torn_tails;
    if (map->cut()) return DataLoss(segment.name + " was cut while it was read");
  }
  return end;
}

absl::StatusOr<Recovered> Recover(Disk* disk, const RecoveryOptions& options, Clock* clock) {
  const Time begin = clock->Now();
  Recovered out;
  SIGNVOTE_RETURN_IF_ERROR(LoadSnapshot(disk, options.until, &out));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<SegmentFile> segments, ListSegments(disk));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<DiskEntry> entries, disk->List());
  bool unreadable = false;
  for (const DiskEntry& entry : entries) {
    if (const auto number = SpareOf(entry.name)) out.spares.push_back(*number);
    // What was put aside is of servers whose numbers workers still know.
    if (!entry.name.ends_with(kCutSuffix)) continue;
    SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> map, disk->Map(entry.name));
    if (const auto header = ReadSegmentHeader(map->data()); header.ok()) {
      out.last_epoch = std::max(out.last_epoch, Epoch(header->epoch));
    } else {
      unreadable = true;
    }
  }
  if (segments.empty()) {
    if (out.begun || !out.report.unusable.empty()) {
      return DataLoss(absl::StrCat(disk->path(),
                                   " has snapshots and no segment; restore the journal's folder "
                                   "from a copy of it, or start from the snapshot with --init"));
    }
    return out;
  }
  out.run_id = segments.front().run_id;
  out.last_epoch = std::max(out.last_epoch, segments.back().info.epoch);
  for (const v1::EpochBegun& begun : out.head.run().begun())
    out.last_epoch = std::max(out.last_epoch, Epoch(begun.epoch()));
  // A segment that cannot be read any more may be of the next server than those that can.
  if (unreadable) out.last_epoch = out.last_epoch.next();
  for (const SegmentFile& segment : segments) out.segments.push_back(segment.info);
  if (out.begun && out.head.run().run_id() != out.run_id->bytes()) {
    return DataLoss(absl::StrCat("the snapshot of round ", out.round().value(),
                                 " is of another run than the segments beside it"));
  }
  out.head.mutable_run()->set_run_id(std::string(out.run_id->bytes()));

  Player player(options, clock, &out);
  SIGNVOTE_RETURN_IF_ERROR(player.Begin());
  const size_t first = out.begun ? FirstNeeded(segments, out.round()) : 0;
  if (out.begun && segments[first].info.first_round > out.round()) {
    return DataLoss(absl::StrCat("the commits from round ", out.round().value(), " to ",
                                 segments[first].info.first_round.value(),
                                 " are missing: the snapshots behind them are not whole (",
                                 out.report.unusable.empty() ? "none" : out.report.unusable.front(),
                                 ")"));
  }
  ScanEnd end;
  for (size_t i = first; i < segments.size(); ++i) {
    out.last_is_bare = true;
    // One at a time: a round lies in one segment, and what a server left open ends with its last one.
    SIGNVOTE_ASSIGN_OR_RETURN(const ScanEnd here,
                              ScanSegments(disk,
                                           {segments.begin() + static_cast<std::ptrdiff_t>(i),
                                            segments.begin() + static_cast<std::ptrdiff_t>(i) + 1},
                                           0, [&player, &out](const Visited& v) {
                                             if (v.record.type != RecordType::kHead)
                                               out.last_is_bare = false;
                                             return player.Take(v);
                                           }));
    player.DropOpenRound();
    player.NoteEpoch(segments[i]);
    end.last_end = here.last_end;
    end.torn_tails += here.torn_tails;
  }
  player.Finish();
  out.last_end = end.last_end;
  out.before_last_end = segments.back().previous_end;
  out.report.torn_tails = end.torn_tails;
  if (options.until.has_value() && (!out.begun || player.next() != *options.until)) {
    return WithExitCode(
        absl::NotFoundError(
            absl::StrCat("the journal does not have round ", options.until->value(),
                         out.begun ? absl::StrCat("; it ends behind round ", player.next().value())
                                   : std::string("; its oldest snapshot is newer"))),
        ExitCode::kBadInput);
  }
  out.report.seconds = ToSeconds(clock->Now() - begin);
  return out;
}

}  // namespace signvote::journal
