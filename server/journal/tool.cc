#include "server/journal/tool.h"

#include <charconv>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "server/journal/journal_format.h"
#include "server/journal/recovery.h"
#include "server/journal/segment_reader.h"
#include "server/journal/snapshot.h"
#include "signvote/v1/journal.pb.h"

namespace signvote::journal {
namespace {

const std::string kCut(kCutSuffix);

// "ids 0,1,2", or where chunks counted the ballots of different workers "ids 0,1,2 of 3 chunks, ids 0,1 of 1".
std::string VotersOf(const v1::JournalCommit& commit) {
  if (commit.voters_of_size() == 0) return absl::StrCat(commit.voters());
  std::string text;
  for (const v1::JournalVoters& of : commit.voters_of()) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", "ids ", absl::StrJoin(of.ids(), ","));
    if (commit.voters_of_size() > 1) absl::StrAppend(&text, " of ", of.chunks(), " chunks");
  }
  return text;
}

// The shortest text that reads back as this number.
std::string Exact(float value) {
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof(text), value).ptr);
}

// How far and about what a commit moves the parameters.
std::string MoveOf(const v1::JournalCommit& commit) {
  std::string text = absl::StrCat("stepsize ", Exact(commit.gamma()), " rho ", Exact(commit.rho()));
  if (commit.has_decay_step()) absl::StrAppend(&text, " decay step ", Exact(commit.decay_step()));
  if (commit.scales_size() > 0) {
    absl::StrAppend(&text, " scales ",
                    absl::StrJoin(commit.scales(), ",", [](std::string* out, float scale) {
                      out->append(Exact(scale));
                    }));
  }
  return text;
}

std::string SaysWhat(const SegmentReader::Record& record) {
  const auto parse = [&record](auto* message) {
    return message->ParseFromArray(record.payload.data(), static_cast<int>(record.payload.size()));
  };
  switch (record.type) {
    case RecordType::kHead: {
      v1::JournalHead head;
      if (!parse(&head)) break;
      return absl::StrCat(head.run().tensors_size(), " tensors, chunks of ",
                          head.chunk_coordinates(), " coordinates");
    }
    case RecordType::kName: {
      v1::JournalName name;
      if (!parse(&name)) break;
      return absl::StrCat("id ", name.name().id(), " '", name.name().name(), "' incarnation ",
                          name.name().incarnation(), name.name().evicted() ? " evicted" : "");
    }
    case RecordType::kPause: {
      v1::JournalPause pause;
      if (!parse(&pause)) break;
      return pause.paused() ? "paused" : "resumed";
    }
    case RecordType::kChunk: {
      ChunkHeader chunk;
      if (record.payload.size() < sizeof(chunk)) break;
      std::memcpy(&chunk, record.payload.data(), sizeof(chunk));
      return absl::StrCat(
          "attempt ", chunk.attempt, " chunk ", chunk.chunk, " counted ", chunk.counted, ", ",
          record.payload.size() - sizeof(chunk), " bytes, ",
          absl::StrFormat("checksum %016x", Xxh3(record.payload.subspan(sizeof(chunk)))));
    }
    case RecordType::kOptimizer:
      return absl::StrCat(record.payload.size() / sizeof(float), " numbers");
    case RecordType::kCommit: {
      v1::JournalCommit commit;
      if (!parse(&commit) || commit.kind() > static_cast<uint32_t>(CommitKind::kNone)) break;
      return absl::StrFormat(
          "%s attempt %d %s data step %d voters %s chunks %d hash %016x%s%s",
          Words(static_cast<CommitKind>(commit.kind())), commit.attempt(), MoveOf(commit),
          commit.data_step(), VotersOf(commit), commit.counted_size(), commit.payload_hash(),
          commit.run_done() ? " last" : "",
          commit.reason().empty() ? "" : absl::StrCat(" (", commit.reason(), ")"));
    }
  }
  return "what it says cannot be read";
}

struct Break {
  size_t segment = 0;
  uint64_t offset = 0;  // 0: all of it
  std::string why;
};

// The first segment that a start reads: what is older than the newest snapshot that is whole it does not.
absl::StatusOr<size_t> FirstRead(Disk* disk, const std::vector<SegmentFile>& segments) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<Round> rounds, ListSnapshots(disk));
  for (const Round round : rounds) {
    if (CheckSnapshot(disk, round).ok()) return FirstNeeded(segments, round);
  }
  return 0;
}

// Where the first segment from `first` on is damaged; nullopt: nowhere.
absl::StatusOr<std::optional<Break>> FindBreak(Disk* disk, const std::vector<SegmentFile>& segments,
                                               size_t first) {
  for (size_t i = first; i < segments.size(); ++i) {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> map, disk->Map(segments[i].name));
    absl::StatusOr<SegmentReader> reader =
        SegmentReader::Open(segments[i].name, map->data(), segments[i].end);
    if (!reader.ok()) return Break{.segment = i, .offset = 0, .why = Describe(reader.status())};
    while (true) {
      const auto record = reader->Next();
      if (absl::IsDataLoss(record.status())) {
        return Break{.segment = i, .offset = reader->offset(), .why = Describe(record.status())};
      }
      SIGNVOTE_RETURN_IF_ERROR(record.status());
      if (!record->has_value()) break;
    }
  }
  return std::nullopt;
}

}  // namespace

absl::Status Verify(Disk* disk, Clock* clock, const Print& print) {
  absl::Status first;
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<Round> snapshots, ListSnapshots(disk));
  for (const Round round : snapshots) {
    const absl::Status status = CheckSnapshot(disk, round);
    print(absl::StrCat("snapshot of round ", round.value(), ": ",
                       status.ok() ? "whole" : Describe(status), "\n"));
    if (first.ok()) first = status;
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<SegmentFile> segments, ListSegments(disk));
  for (size_t i = 0; i < segments.size(); ++i) {
    uint64_t records = 0, commits = 0;
    std::vector<SegmentFile> one = {segments[i]};
    SIGNVOTE_ASSIGN_OR_RETURN(const ScanEnd end, ScanSegments(disk, one, 0, [&](const Visited& v) {
                                ++records;
                                commits += v.record.type == RecordType::kCommit ? 1 : 0;
                                return absl::OkStatus();
                              }));
    print(absl::StrCat(segments[i].name, ": epoch ", segments[i].info.epoch.value(),
                       ", from round ", segments[i].info.first_round.value(), ", ", records,
                       " records, ", commits, " commits, ", end.last_end, " bytes",
                       end.torn_tails > 0 ? ", and a write that was not finished" : "", "\n"));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const Recovered recovered, Recover(disk, {}, clock));
  if (!recovered.run_id.has_value()) {
    print("there is no run in it\n");
    return first;
  }
  print(absl::StrCat("run ", recovered.run_id->ToText(), ", epoch ", recovered.last_epoch.value(),
                     ": ",
                     recovered.begun ? absl::StrCat(recovered.round().value(), " rounds")
                                     : std::string("not begun"),
                     ", ", recovered.report.commits, " of them played in ",
                     absl::StrFormat("%.3f", recovered.report.seconds), " s\n"));
  return first;
}

absl::Status Dump(Disk* disk, const Print& print) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<SegmentFile> segments, ListSegments(disk));
  std::string segment;
  return ScanSegments(
             disk, segments, 0,
             [&](const Visited& v) {
               if (segment != v.segment->name) {
                 segment = v.segment->name;
                 print(absl::StrCat(segment, ": run ", v.segment->run_id.ToText(), ", epoch ",
                                    v.segment->info.epoch.value(), ", from round ",
                                    v.segment->info.first_round.value(), "\n"));
               }
               print(absl::StrFormat("%10d %-9s round %d: %s\n", v.record.offset,
                                     Words(v.record.type), v.record.round.value(),
                                     SaysWhat(v.record)));
               return absl::OkStatus();
             })
      .status();
}

namespace {

absl::Status PutAside(Disk* disk, const std::string& name, const Print& print) {
  SIGNVOTE_RETURN_IF_ERROR(disk->Rename(name, name + kCut));
  print(absl::StrCat(name, ": given up, and kept as ", name, kCut, "\n"));
  return absl::OkStatus();
}

// Whether a start can begin with the first of these segments: the newest snapshot that is whole needs
// nothing before it.
absl::StatusOr<bool> CanBeginWith(Disk* disk, const SegmentFile& segment) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<Round> rounds, ListSnapshots(disk));
  for (const Round round : rounds)
    if (CheckSnapshot(disk, round).ok()) return segment.info.first_round < round;
  return false;
}

// The segments of a folder that has only such as can be read and follow each other: others are put aside,
// with what is before them where no start needs that, else with what is behind.
absl::StatusOr<std::vector<SegmentFile>> ReadableSegments(Disk* disk, const Print& print) {
  while (true) {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<std::string> names, SegmentNames(disk));
    SIGNVOTE_ASSIGN_OR_RETURN(SegmentList list, ReadSegments(disk, names));
    if (list.why.ok()) return std::move(list.segments);
    print(Describe(list.why) + "\n");
    const size_t bad = list.segments.size();
    size_t kept_from = names.size();
    for (size_t from = bad; from < names.size() && from <= bad + 1 && kept_from == names.size();
         ++from) {
      SIGNVOTE_ASSIGN_OR_RETURN(const SegmentList behind,
                                ReadSegments(disk, std::span(names).subspan(from)));
      if (!behind.why.ok() || behind.segments.empty()) continue;
      SIGNVOTE_ASSIGN_OR_RETURN(const bool enough, CanBeginWith(disk, behind.segments.front()));
      if (enough) kept_from = from;
    }
    if (kept_from < names.size()) {
      for (size_t i = 0; i < kept_from; ++i)
        SIGNVOTE_RETURN_IF_ERROR(PutAside(disk, names[i], print));
    } else {
      // The last first: at any moment what is there is a journal that ends earlier.
      for (size_t i = names.size(); i-- > bad;)
        SIGNVOTE_RETURN_IF_ERROR(PutAside(disk, names[i], print));
    }
    SIGNVOTE_RETURN_IF_ERROR(disk->SyncFolder());
  }
}

// What follows the break goes aside, and so does its segment, of which a copy ends at the break.
absl::Status CutAt(Disk* disk, const std::vector<SegmentFile>& segments, const Break& found,
                   const Print& print) {
  const std::string& name = segments[found.segment].name;
  if (found.offset > 0) {
    std::string whole;
    {
      SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> map, disk->Map(name));
      whole.assign(reinterpret_cast<const char*>(map->data().data()), found.offset);
    }
    const std::string made = name + ".new";
    if (const absl::Status removed = disk->Remove(made);
        !removed.ok() && !absl::IsNotFound(removed))
      return removed;
    SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<DiskFile> file, disk->Create(made, 0));
    SIGNVOTE_RETURN_IF_ERROR(
        file->WriteAt(0, std::as_bytes(std::span(whole.data(), whole.size()))));
    SIGNVOTE_RETURN_IF_ERROR(file->Sync());
  }
  // The last first: at any moment what is there is a journal that ends earlier.
  for (size_t i = segments.size(); i-- > found.segment + 1;)
    SIGNVOTE_RETURN_IF_ERROR(PutAside(disk, segments[i].name, print));
  SIGNVOTE_RETURN_IF_ERROR(disk->Rename(name, name + kCut));
  if (found.offset > 0) {
    SIGNVOTE_RETURN_IF_ERROR(disk->Rename(name + ".new", name));
  }
  SIGNVOTE_RETURN_IF_ERROR(disk->SyncFolder());
  print(absl::StrCat(name, ": cut at byte ", found.offset, "; all of it is kept as ", name, kCut,
                     "\n"));
  return absl::OkStatus();
}

}  // namespace

absl::Status Truncate(Disk* disk, Clock* clock, const Print& print) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<std::string> names, SegmentNames(disk));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<SegmentFile> segments, ReadableSegments(disk, print));
  SIGNVOTE_ASSIGN_OR_RETURN(const size_t first, FirstRead(disk, segments));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<Break> found, FindBreak(disk, segments, first));
  if (!found.has_value() && segments.size() == names.size()) {
    print("nothing that a start reads is damaged, and nothing was cut\n");
    return absl::OkStatus();
  }
  if (found.has_value()) {
    print(found->why + "\n");
    SIGNVOTE_RETURN_IF_ERROR(CutAt(disk, segments, *found, print));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const Recovered recovered, Recover(disk, {}, clock));
  print(absl::StrCat("the run goes on from round ", recovered.round().value(), "\n"));
  return absl::OkStatus();
}

}  // namespace signvote::journal
