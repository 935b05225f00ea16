#include "server/journal/journal_format.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/checksum.h"
#include "common/exit_codes.h"

namespace signvote::journal {
namespace {

constexpr std::string_view kSegmentPrefix = "segment-", kSparePrefix = "spare-",
                           kSnapshotPrefix = "snapshot-", kJournalEnd = ".journal",
                           kStateEnd = ".state";
constexpr size_t kDigits = 16;  // decimal, with zeros before

// The number behind `prefix`, when it has all its digits and `end` follows; nullopt in `end`: anything.
std::optional<uint64_t> NumberOf(std::string_view name, std::string_view prefix,
                                 std::optional<std::string_view> end) {
  if (!name.starts_with(prefix) || name.size() < prefix.size() + kDigits) return std::nullopt;
  uint64_t number = 0;
  for (const char digit : name.substr(prefix.size(), kDigits)) {
    if (digit < '0' || digit > '9') return std::nullopt;
    number = 10 * number + static_cast<uint64_t>(digit - '0');
  }
  if (end.has_value() && name.substr(prefix.size() + kDigits) != *end) return std::nullopt;
  return number;
}

absl::Status Damaged(const std::string& what) {
  return WithExitCode(absl::DataLossError(what), ExitCode::kBadInput);
}

}  // namespace

std::string_view Words(RecordType type) {
  switch (type) {
    case RecordType::kHead:
      return "head";
    case RecordType::kName:
      return "name";
    case RecordType::kPause:
      return "pause";
    case RecordType::kChunk:
      return "chunk";
    case RecordType::kOptimizer:
      return "optimizer";
    case RecordType::kCommit:
      return "commit";
  }
  return "unknown";
}

uint64_t SegmentSeed(const RunId& run_id, uint64_t sequence) {
  return Xxh3(run_id.bytes().data(), run_id.bytes().size(), sequence);
}

SegmentHeader MakeSegmentHeader(const RunId& run_id, uint64_t sequence, Epoch epoch,
                                Round first_round, uint64_t previous_end) {
  SegmentHeader header{};
  std::memcpy(header.magic, kSegmentMagic, sizeof(kSegmentMagic));
  header.version = kVersion;
  std::memcpy(header.run_id, run_id.bytes().data(), sizeof(header.run_id));
  header.sequence = sequence;
  header.epoch = epoch.value();
  header.first_round = first_round.value();
  header.previous_end = previous_end;
  header.checksum = Xxh3(&header, offsetof(SegmentHeader, checksum));
  return header;
}

absl::StatusOr<SegmentHeader> ReadSegmentHeader(std::span<const std::byte> bytes) {
  SegmentHeader header;
  if (bytes.size() < sizeof(header) ||
      std::memcmp(bytes.data(), kSegmentMagic, sizeof(kSegmentMagic)) != 0) {
    return WithExitCode(absl::InvalidArgumentError("is no segment of a journal"),
                        ExitCode::kBadInput);
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.checksum != Xxh3(bytes.first(offsetof(SegmentHeader, checksum))))
    return Damaged("the checksum of its header is wrong");
  if (header.version != kVersion) {
    return WithExitCode(absl::UnimplementedError(
                            absl::StrCat("has version ", header.version,
                                         " of the journal; this program reads version ", kVersion)),
                        ExitCode::kBadInput);
  }
  if (header.reserved != 0 || header.sequence == 0 || header.epoch == 0 ||
      (header.sequence == 1) != (header.previous_end == 0) ||
      header.previous_end % kAlignment != 0) {
    return Damaged("its header has values that no server writes");
  }
  return header;
}

RecordHeader MakeRecordHeader(RecordType type, uint64_t round, uint64_t synced,
                              uint64_t payload_bytes, uint64_t payload_checksum, uint64_t seed) {
  RecordHeader header{};
  header.type = static_cast<uint8_t>(type);
  header.payload_bytes = payload_bytes;
  header.round = round;
  header.synced = synced;
  header.payload_checksum = payload_checksum;
  header.checksum = Xxh3(&header, offsetof(RecordHeader, checksum), seed);
  return header;
}

std::optional<RecordHeader> ReadRecordHeader(std::span<const std::byte> bytes, uint64_t seed) {
  RecordHeader header;
  if (bytes.size() < sizeof(header)) return std::nullopt;
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.checksum != Xxh3(bytes.first(offsetof(RecordHeader, checksum)), seed))
    return std::nullopt;
  return header;
}

std::string SegmentName(uint64_t sequence) {
  return absl::StrFormat("%s%016d%s", kSegmentPrefix, sequence, kJournalEnd);
}
std::string SpareName(uint64_t number) {
  return absl::StrFormat("%s%016d%s", kSparePrefix, number, kJournalEnd);
}
std::string SnapshotStateName(Round round) {
  return absl::StrFormat("%s%016d%s", kSnapshotPrefix, round.value(), kStateEnd);
}
std::string SnapshotXName(Round round) {
  return absl::StrFormat("%s%016d.safetensors", kSnapshotPrefix, round.value());
}
std::string SnapshotX0Name(Round round) {
  return absl::StrFormat("%s%016d.x0.safetensors", kSnapshotPrefix, round.value());
}

std::optional<uint64_t> SegmentOf(std::string_view name) {
  return NumberOf(name, kSegmentPrefix, kJournalEnd);
}
std::optional<uint64_t> SpareOf(std::string_view name) {
  return NumberOf(name, kSparePrefix, kJournalEnd);
}
std::optional<Round> SnapshotStateOf(std::string_view name) {
  const std::optional<uint64_t> round = NumberOf(name, kSnapshotPrefix, kStateEnd);
  return round.has_value() ? std::optional(Round(*round)) : std::nullopt;
}
std::optional<Round> SnapshotOf(std::string_view name) {
  const std::optional<uint64_t> round = NumberOf(name, kSnapshotPrefix, std::nullopt);
  return round.has_value() ? std::optional(Round(*round)) : std::nullopt;
}

}  // namespace signvote::journal
